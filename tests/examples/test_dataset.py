import numpy as np
import pytest

from unloc.evaluation.protocols import PROTOCOLS
from unloc.evaluation.segmentation import frame_labels
from unloc.examples.batches import pad_texts
from unloc.examples.examples import clip_segments, paint_steps, random_crop, step_saliency
from unloc.examples.steps import TimeGrid, token_spans


@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0])
def test_training_labels_are_what_the_metric_paints(fps):
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 50, 20)
    segments = np.stack([starts, starts + rng.uniform(0.1, 10, 20)], axis=1)
    classes = rng.integers(0, 5, 20)
    times = np.arange(int(70 * fps)) / fps
    ours = paint_steps(token_spans(times, 70.0), segments, classes)
    np.testing.assert_array_equal(ours, frame_labels(segments * fps, classes, len(times), PROTOCOLS["as"]["coin"]))


def test_a_text_that_is_too_long_keeps_its_eos():
    short, long = np.ones((2, 3)), np.arange(30.0).reshape(10, 3)
    tokens, mask = pad_texts([short, long], 4)
    assert tokens.shape == (2, 4, 3) and mask.sum(dim=1).tolist() == [2, 4]
    assert tokens[1, -1].tolist() == long[-1].tolist() and tokens[1, 2].tolist() == long[2].tolist()


def test_a_crop_keeps_the_segments_whole_and_is_long_enough():
    class Config:
        crop_probability, crop_min_fraction = 1.0, 0.5

    times = np.linspace(0, 50, 101)
    segments = np.array([[10.0, 14.0], [30.0, 33.0]])
    for seed in range(30):
        crop = random_crop(times, segments, Config, np.random.default_rng(seed))
        if crop is not None:
            assert crop[0] <= 10 and crop[1] >= 33 and crop[1] - crop[0] >= 25 - 1e-9
            assert crop[0] >= 0 and crop[1] <= 50 + 1e-9
    assert random_crop(times, segments, Config, None) is None


def test_segments_cut_to_less_than_half_are_left_out():
    segments = np.array([[0.0, 10.0], [8.0, 12.0], [19.0, 30.0]])
    cut, classes = clip_segments(segments, np.array([0, 1, 2]), (4.0, 20.0))
    assert cut.tolist() == [[4.0, 10.0], [8.0, 12.0]] and classes.tolist() == [0, 1]


def test_saliency_of_a_step_is_that_of_the_clip_it_falls_in():
    row = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 4], [2, 2, 2]]}
    steps = step_saliency(row, TimeGrid(0.0, 1.0), 8)
    assert steps.tolist() == [0, 0, 1.0, 1.0, 0.5, 0.5, 0, 0]
    assert step_saliency({"saliency_scores": None}, TimeGrid(0.0, 1.0), 8) is None
