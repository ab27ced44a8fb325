"""How long a label lasts and how much it weighs: labels with times, compared with labels at a stated rate."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest
from unloc.errors import InputError
from unloc.evaluation.analysis import analyse
from unloc.evaluation.evaluator import evaluate, score
from unloc.predictions.records import FramePrediction

CLASSES = ("a", "b")


def manifest_of(segments, duration=10.0):
    rows = [VideoRow("v", "test", duration)]
    rows += [InstanceRow("v", "test", label, [start, end]) for label, start, end in segments]
    return build_manifest(name="m", tasks=("as",), rows=rows, classes=CLASSES)


def accuracy(times, labels, segments, duration=10.0):
    item = FramePrediction(video_id="v", times_seconds=times, labels=labels)
    return score("as", [item], manifest_of(segments, duration))["frame_accuracy"]


@pytest.mark.parametrize(
    ("times", "labels", "expected"),
    [
        ([0, 5], [None, "a"], 100),  # each label holds until the next, the last until the video ends
        ([0, 4], [None, "a"], 90),
        ([0], ["a"], 50),  # the last of few labels does not pass for one frame
        ([0], [None], 50),
        ([0, 0.5, 1, 1.5, 2], [None] * 5, 50),  # what is left out at the end is not left out of the score
        ([6, 7, 8, 9], ["a"] * 4, 50),  # nor at the start
        ([0, 5, 12, 14], [None, "a", None, "b"], 100),  # after the end of the video nothing counts
        ([-1, 5], [None, "a"], 100),
        ([0, 5, 1e300], [None, "a", "b"], 100),
    ],
)
def test_a_label_holds_until_the_next_and_counts_by_its_seconds(times, labels, expected):
    assert accuracy(times, labels, [("a", 5, 10)]) == pytest.approx(expected)


def test_frames_count_by_their_seconds_in_every_metric():
    times, labels = [0, 0.1, 0.2, 0.3, 2.0], ["a", "a", "a", "b", None]
    item = FramePrediction(
        video_id="v", times_seconds=times, labels=labels, scores=np.array([[2, 0]] * 3 + [[1, 3]] * 2)
    )
    found = score("as", [item], manifest_of([("a", 0, 2)], duration=4.0))
    assert found["frame_accuracy"] == pytest.approx(100 * 2.3 / 4)
    assert found["mAP"] == pytest.approx(100 * (0.3 + 1.7 * 2 / 4) / 2)  # 0.3 s ranked first, then all 4 s in one step
    assert found["F1@10"] == pytest.approx(100 * 2 / 3) and found["F1@25"] == 0.0  # 0.3 of 2 s


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 10.0, 25.0]), st.floats(3.0, 30.0))
@settings(max_examples=40, deadline=None)
def test_times_at_a_rate_score_as_that_rate_stated(seed, fps, duration):
    rng = np.random.default_rng(seed)
    count = int(np.ceil(duration * fps - 1e-6))
    starts = rng.uniform(0, duration, 4)
    segments = [(str(rng.choice(CLASSES)), s, min(duration, s + rng.uniform(0.2, 6))) for s in starts]
    labels = [[None, *CLASSES][n] for n in rng.integers(0, 3, count)]
    stated = FramePrediction(video_id="v", fps=fps, labels=labels, scores=rng.normal(size=(count, 2)))
    timed = replace(stated, fps=None, times_seconds=np.arange(count) / fps)
    manifest = manifest_of(segments, duration)
    one, other = (evaluate("as", [item], manifest, "test") for item in (stated, timed))
    assert one["metrics"] == pytest.approx(other["metrics"], nan_ok=True)
    assert one["floors"]["all_background"] == pytest.approx(other["floors"]["all_background"])


def test_runs_of_labels_end_where_the_next_label_begins():
    times = np.floor(np.arange(240) * 12.5) / 25
    labels = ["a" if 100 <= time < 104 else None for time in times]
    item = FramePrediction(video_id="v", times_seconds=times, labels=labels)
    begins = times[labels.index("a")]
    found = analyse("as", [item], manifest_of([("a", begins, 104)], 120.0))
    assert found["counts"]["true"] == 1
    last = FramePrediction(video_id="v", times_seconds=[0, 5], labels=[None, "b"])
    assert analyse("as", [last], manifest_of([("b", 5, 10)]))["counts"]["true"] == 1


@pytest.mark.parametrize(
    "timing", [{}, {"fps": 1.0, "times_seconds": [0]}, {"times_seconds": [0, 1]}, {"times_seconds": [[0]]}]
)
def test_labels_without_one_timing_of_their_own_are_refused(timing):
    with pytest.raises(InputError, match="labels of v"):
        FramePrediction(video_id="v", labels=["a"], **timing)
