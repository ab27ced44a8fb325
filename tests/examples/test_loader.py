"""Batches depend on the seed and the step alone, and examples take frames and texts from any source."""

from itertools import islice

import numpy as np
import pytest
import torch

from tests.training.test_trainer import recipe_for
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest, load_manifest
from unloc.cache.opening import open_cache
from unloc.examples.examples import Examples
from unloc.examples.loader import Loader
from unloc.examples.sources import CachedTokens, ClassTexts
from unloc.recipes import recipe_from_dict


def loader_of(world, task, *overrides):
    recipe = recipe_for(task, "data.jitter=true", "data.crop_probability=0.5", *overrides)
    manifest, source = load_manifest(world[0]).select("train"), CachedTokens(open_cache(world[1]))
    texts = ClassTexts(manifest.classes, source, recipe.data) if task in ("tal", "as") else None
    return Loader(Examples(task, manifest, source, recipe.data), texts, recipe)


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_a_loader_that_starts_in_the_middle_gives_the_batches_of_one_that_started_at_0(token_world, task):
    whole = loader_of(token_world, task)
    end = 2 * len(whole) + 3  # over two borders between epochs
    expected = list(islice(whole.batches(0, end), len(whole) - 1, None))
    again = list(loader_of(token_world, task).batches(len(whole) - 1, end))
    assert len(again) == len(expected) == len(whole) + 4
    for one, other in zip(again, expected, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.texts, other.texts)
        assert torch.equal(one.segments_steps, other.segments_steps)
    other = next(loader_of(token_world, task, "train.seed=1").batches(0, 1))
    assert not torch.equal(other.frames, next(whole.batches(0, 1)).frames)


def test_an_epoch_has_every_example_once(token_world):
    loader = loader_of(token_world, "mr")
    batches = list(loader.batches(0, len(loader)))
    rows = [
        (video, float(text.sum()))
        for batch in batches
        for video, text in zip(batch.video_ids, batch.texts, strict=True)
    ]
    assert len(rows) == len(set(rows)) == len(loader.examples) == 80


class Pixels:
    """A source of images and token ids: what towers in the model take."""

    name, fingerprint = "pixels", {}

    def __contains__(self, video_id):
        return video_id != "absent"

    def durations_of(self, video_ids):
        return dict.fromkeys(video_ids, 5.0)

    def video_sha256(self, video_id):
        return None

    def frames(self, video_id, rng):
        pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((3, 8, 8), dtype=np.uint8)
        return pixels, np.arange(5.0)

    def texts(self, texts):
        return [np.array([49406, *range(len(text.split())), 49407]) for text in texts]


def test_a_source_of_pixels_and_token_ids_gives_batches_of_these():
    rows = [VideoRow(name, "train", None) for name in ("a", "b", "absent")]
    rows += [QueryRow("a", "train", "1", "a cat jumps", [[1, 2]]), QueryRow("b", "train", "2", "a dog", [[0, 4]])]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows)
    data = {"num_steps": 8, "max_text_tokens": 4, "coverage": 0.5}
    recipe = recipe_from_dict({"task": "mr", "data": data, "train": {"batch_size": 2}})
    loader = Loader(Examples("mr", manifest, Pixels(), recipe.data), None, recipe)
    (batch,) = loader.batches(0, 1)
    assert batch.frames.shape == (2, 8, 3, 8, 8) and batch.frames.dtype == torch.uint8
    assert batch.frames[0, :, 0, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    ids = dict(zip(batch.video_ids, batch.texts.tolist(), strict=True))
    assert ids == {"a": [49406, 0, 1, 49407], "b": [49406, 0, 1, 49407]} and batch.text_mask.all()
