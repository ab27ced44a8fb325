"""Processes that prepare batches: nothing depends on how many there are, and none outlives the run."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.processes import start_unloc
from tests.training.test_trainer import assert_same_runs, at_step, recipe_for
from unloc.annotations.schema import load_manifest
from unloc.config import AugmentConfig
from unloc.errors import LoaderError
from unloc.examples.augment import ClipTransform
from unloc.examples.examples import Examples
from unloc.examples.frame_source import FrameShards
from unloc.examples.loader import Loader
from unloc.recipes import dump_recipe
from unloc.training.inputs import tokenizer
from unloc.training.run import fit_recipe

WORDS = ["train.epochs=0.4", "train.eval_every_epochs=0.15", "data.jitter=true", "data.crop_probability=0.5"]  # 8 steps


@pytest.fixture(scope="module")
def whole(token_world, tmp_path_factory) -> Path:
    """A run without workers that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit_recipe(recipe_for("mr", *WORDS, "model.dropout=0.1"), *token_world, run, threads=1, loader_workers=0)
    return run


def workers_of(process: int) -> list[int]:
    """Loader workers of a process that are still there."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = status.read_text().rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == process and state != "Z" and b"spawn_main" in command:
            found.append(int(status.parent.name))
    return found


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_one_line_and_the_run_resumes_without_to_the_same_bits(token_world, tmp_path, whole):
    def kill_worker():
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
        time.sleep(1)

    recipe, run = recipe_for("mr", *WORDS, "model.dropout=0.1"), tmp_path / "run"
    with pytest.raises(LoaderError, match=r"--resume with fewer --loader-workers") as raised:
        fit_recipe(recipe, *token_world, run, threads=1, loader_workers=2, on_step=at_step(5, kill_worker))
    assert "\n" not in str(raised.value)
    wait_until(lambda: not workers_of(os.getpid()))
    fit_recipe(recipe, *token_world, run, threads=1, loader_workers=0, resume=True)
    assert_same_runs(whole, run)


def test_pixels_are_augmented_the_same_in_workers(tmp_path):
    from tests.conftest import render_video
    from tests.training.test_end_to_end import LABELS
    from unloc.annotations.schema import QueryRow, VideoRow, build_manifest
    from unloc.model.clip import pretrained_clip
    from unloc.video.frame_shards import FrameSpec, pack_frames
    from unloc.video.preprocess import PreprocessSpec
    from unloc.video.reading import FrameSampling

    files = {f"v{seed}": render_video(tmp_path / f"v{seed}.mp4", num_frames=20, seed=seed) for seed in range(2)}
    pack_frames(list(files), files, tmp_path / "frames", FrameSpec(sampling=FrameSampling(num_frames=8), size=64))
    rows = [VideoRow(name, "train", None) for name in files]
    rows += [QueryRow(name, "train", name, LABELS[0], [[0.1, 0.8]]) for name in files]
    recipe = recipe_for("mr", "train.batch_size=1", "data.num_steps=8")
    spec = PreprocessSpec(image_size=56, mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = ClipTransform(spec, AugmentConfig(scale_jitter=True, randaugment_layers=3))
    source = FrameShards(tmp_path / "frames", tokenizer(recipe, pretrained_clip("toy", None, None)[0]), transform)
    examples = Examples("mr", build_manifest(name="m", tasks=("mr",), rows=rows), source, recipe.data)
    here, there = (list(Loader(examples, None, recipe, workers=count).batches(3, 7)) for count in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.texts, other.texts)
        assert one.video_ids == other.video_ids
    assert not torch.equal(here[0].frames, here[2].frames)


def test_an_error_in_a_worker_is_the_line_that_it_is_without_workers(unloc, token_world, tmp_path):
    import shutil

    from unloc.cache.reading import Cache

    manifest, cache = token_world
    shutil.copytree(cache, tmp_path / "cache")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS, "data.val_split=''")))
    damaged = Cache(tmp_path / "cache")
    first = load_manifest(manifest).select("train").videos["video_id"].iloc[0]
    index = json.loads((tmp_path / "cache" / "zarr.json").read_text())
    assert index and first in damaged
    for file in sorted((tmp_path / "cache" / "shards").glob("*/frames/c/*/*/*")):
        file.write_bytes(file.read_bytes()[:-1])
    lines = set()
    for count in (0, 1):
        words = ("fit", tmp_path / "recipe.yaml", "--manifest", manifest, "--cache", tmp_path / "cache", "--threads", 1)
        code, _, err = unloc(*words, "--work-dir", tmp_path / f"run{count}", "--loader-workers", count)
        assert code == 2
        lines.add(err)
    assert len(lines) == 1 and lines.pop().count("\n") == 1


def test_workers_end_with_the_run_however_it_ends(token_world, tmp_path):
    manifest, cache = token_world
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", "train.epochs=100", "data.val_split=''")))
    words = ["fit", tmp_path / "recipe.yaml", "--loader-workers", 1, "--work-dir", tmp_path / "run", "--threads", 1]
    rows, errors = tmp_path / "run" / "metrics.jsonl", tmp_path / "errors"
    for ending, resumed in ((signal.SIGTERM, []), (signal.SIGKILL, ["--resume"])):
        rows.unlink(missing_ok=True)
        process = start_unloc(*words, "--manifest", manifest, "--cache", cache, *resumed, errors=errors)
        wait_until(lambda: (rows.is_file() and rows.read_text()) or not process.is_alive())  # noqa: B023
        workers = workers_of(process.pid)
        if ending == signal.SIGTERM:  # to all of the job, as a cluster sends it
            os.killpg(process.pid, ending)
        else:
            process.kill()
        process.join()
        assert workers and process.exitcode == (2 if ending == signal.SIGTERM else -signal.SIGKILL), errors.read_text()
        assert ("which is saved; use --resume" in errors.read_text()) == (ending == signal.SIGTERM)
        wait_until(lambda: not any(map(is_there, workers)), 10)  # noqa: B023
