"""Pixels as a source of examples: packed frames and video files give the same, exactly shuffled and resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import render_video
from tests.training.test_trainer import recipe_for
from tests.video.test_frame_shards import extracted
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.examples.augment import AugmentConfig, ClipTransform, directed_videos
from unloc.examples.examples import Examples
from unloc.examples.frame_source import FrameShards, VideoFiles
from unloc.examples.loader import Loader
from unloc.examples.sources import ClassTexts
from unloc.model.towers import clip_ids
from unloc.video import frame_shards
from unloc.video.frame_shards import FrameSpec, pack_frames
from unloc.video.preprocess import PreprocessSpec
from unloc.video.reading import FrameSampling

SPEC = FrameSpec(sampling=FrameSampling(num_frames=12), size=64)
TOWER = PreprocessSpec(image_size=56, mean=(0.5,) * 3, std=(0.5,) * 3)
CLASSES = ("turn left", "jump")


def tokenize(texts):
    return clip_ids(texts, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {f"v{n}": render_video(folder / f"v{n}.mp4", num_frames=15 + 3 * n, seed=n) for n in range(5)}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("frames")
    pack_frames(list(files), files, out, SPEC, videos_per_shard=2)
    return out


def manifest():
    rows = []
    for number in range(5):
        rows += [VideoRow(f"v{number}", "t", None), InstanceRow(f"v{number}", "t", CLASSES[number % 2], [0.2, 0.9])]
        for query in range(2):
            rows.append(QueryRow(f"v{number}", "t", f"{number}-{query}", f"sentence {number} {query}", [[0.1, 0.8]]))
    return build_manifest(name="m", tasks=("mr", "tal", "as"), rows=rows, classes=CLASSES)


def as_stored(frames, video_id, rng):
    return frames


def transform(**changes):
    config = AugmentConfig(scale_jitter=True, randaugment_layers=2)
    return ClipTransform(TOWER, replace(config, **changes), directed_videos(manifest()))


def loader_of(source, task):
    recipe = recipe_for(task, "data.jitter=true", "data.crop_probability=0.5", "train.batch_size=2", "data.num_steps=8")
    texts = None if task == "mr" else ClassTexts(CLASSES, source, recipe.data)
    return Loader(Examples(task, manifest(), source, recipe.data), texts, recipe)


def test_packed_frames_and_video_files_give_the_same_up_to_jpeg(folder, files):
    packed, direct = (
        FrameShards(folder, tokenize, as_stored),
        VideoFiles(Path("videos"), files, SPEC, tokenize, as_stored),
    )
    assert packed.durations_of([*files, "absent"]) == pytest.approx(direct.durations_of([*files, "absent"]))
    assert "v0" in packed and "absent" not in packed and "v0" in direct and "absent" not in direct
    for video_id in files:
        (one, times), (other, same) = packed.frames(video_id, None), direct.frames(video_id, None)
        np.testing.assert_array_equal(times, same)
        order = np.array([3, 3, 0, 11])
        assert len(one) == len(other) == 12 and one[order].dtype == np.uint8
        assert one[order].shape == other[order].shape == (4, 3, 64, 96)
        assert np.abs(one[order].astype(int) - other[order]).mean() < 2.5


def test_the_centre_crop_is_that_of_extract_up_to_jpeg_and_a_second_resize(folder, files):
    """Mean difference under 2 % of the range; noise blocks of 8 pixels are the hardest pictures."""
    source = FrameShards(folder, tokenize, transform())
    for video_id, path in files.items():
        frames, times = source.frames(video_id, None)
        pixels, same = extracted(path, SPEC.sampling, 56)
        assert times.tolist() == same
        assert np.abs(frames[np.arange(12)].astype(int) - pixels).mean() < 5


def test_only_the_frames_that_an_example_uses_are_decoded(folder, monkeypatch):
    asked, read = [], frame_shards.read_frames
    monkeypatch.setattr(
        "unloc.examples.frame_source.read_frames", lambda *args: asked.append(args[2].tolist()) or read(*args)
    )
    examples = Examples("as", manifest(), FrameShards(folder, tokenize, as_stored), recipe_for("as").data)
    assert asked == []
    example = replace(examples.config, num_steps=4)
    examples.config = example
    frames = examples.example(0, np.random.default_rng(0)).frames
    assert frames.shape[0] == 4 and len(asked) == 1 and len(asked[0]) == 4


@pytest.mark.parametrize("kind", ["packed", "files"])
@pytest.mark.parametrize("task", ["mr", "tal", "as"])
def test_a_loader_that_starts_in_the_middle_gives_the_same_pixels(folder, files, kind, task):
    def source():
        if kind == "packed":
            return FrameShards(folder, tokenize, transform())
        return VideoFiles(Path("videos"), files, SPEC, tokenize, transform())

    whole = loader_of(source(), task)
    end = 2 * len(whole)
    expected = list(whole.batches(0, end))
    again = list(loader_of(source(), task).batches(len(whole) - 1, end))
    for one, other in zip(again, expected[len(whole) - 1 :], strict=True):
        assert one.frames.dtype == torch.uint8 and one.frames.shape[1:] == (8, 3, 56, 56)
        assert torch.equal(one.frames, other.frames) and torch.equal(one.texts, other.texts)
        assert torch.equal(one.segments_steps, other.segments_steps)
    first, second = expected[: len(whole)], expected[len(whole) :]
    rows = [
        [row for batch in part for row in zip(batch.video_ids, batch.frames, strict=True)] for part in (first, second)
    ]
    seen = [{(video, frames.numpy().tobytes()) for video, frames in part} for part in rows]
    assert not seen[0] & seen[1]  # another epoch, other augmentations
    assert len({video for video, _ in seen[0]}) == 5


def test_a_clip_is_augmented_once_however_often_it_is_read(folder):
    source = FrameShards(folder, tokenize, transform(randaugment_layers=0))
    frames, _ = source.frames("v1", np.random.default_rng(4))
    every = frames[np.arange(12)]
    np.testing.assert_array_equal(frames[np.array([5, 2])], every[[5, 2]])
    assert not np.array_equal(source.frames("v1", np.random.default_rng(5))[0][np.arange(12)], every)


def test_texts_are_ids_from_bos_to_eos(folder):
    source = FrameShards(folder, tokenize, as_stored)
    short, long = source.texts(["a", "a man opens a door"])
    assert len(short) == 3 and len(long) == 7 and short[0] == long[0] and short[-1] == long[-1]
    assert source.texts([]) == []


def test_what_identifies_a_videos_frames_is_its_file_and_packing(folder, files, tmp_path):
    videos = {"v1": files["v1"], "v0": files["v0"]}
    pack_frames(list(videos), videos, tmp_path / "same", SPEC)
    pack_frames(list(videos), videos, tmp_path / "other", FrameSpec(sampling=SPEC.sampling, size=32))
    first, same, other = (
        FrameShards(path, tokenize, as_stored) for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert first.video_sha256("v0") == same.video_sha256("v0") != first.video_sha256("v1")
    assert other.video_sha256("v0") != first.video_sha256("v0")
    direct = VideoFiles(Path("videos"), files, SPEC, tokenize, as_stored)
    assert direct.video_sha256("v0") == direct.video_sha256("v0") != direct.video_sha256("v1")
