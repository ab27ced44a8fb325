"""`unloc fit` killed at random moments in every mode: each run, resumed until it is done, equals an undisturbed one."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_end_to_end import LIVE, SMALL, world  # noqa: F401 (a fixture)

KILLS = int(os.environ.get("UNLOC_FIT_KILLS", "3"))
MODES = {
    "cached": ["towers.name=toy"],
    "live text": ["towers.name=toy", "towers.text=finetune"],
    "frames": LIVE,
    "frames replayed": [*LIVE, "towers.frame_chunk=3", "towers.replay_share=0.5"],
}
OPTIONS = {
    "one process": [],
    "loader workers": ["--loader-workers", "2"],
    "two processes": ["--workers", "2"],
    "two processes with loader workers": ["--workers", "2", "--loader-workers", "2"],
}


@pytest.fixture(scope="module")
def cache(world, tmp_path_factory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("cached") / "cache"
    words = ["extract", world[0], "--videos", world[2], "--cache", out, "--frames", 12, "--workers", 0]
    subprocess.run([sys.executable, "-m", "unloc", *map(str, words)], check=True)
    return out


def rows_of(run: Path, *kinds: str) -> list[dict]:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in (path.read_text().splitlines() if path.is_file() else []) if line[-1:] == "}"]
    return [row for row in rows if row["kind"] in kinds]


def steps_of(run: Path) -> int:
    return len(rows_of(run, "train"))


@pytest.mark.slow
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("mode", list(MODES))
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(world, cache, tmp_path, mode, options):  # noqa: F811
    data = ["--frames", world[1]] if mode.startswith("frames") else ["--cache", cache]
    words = ["fit", "synth_mr", *SMALL, *MODES[mode], "train.epochs=12", "train.checkpoint_minutes=1e-9"]
    words += ["train.log_every=1", "--manifest", world[0], *data, "--threads", 1, *OPTIONS[options], "--work-dir"]

    def fit(run: Path, *further: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "unloc", *map(str, [*words, run, *further])]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole, run, rng, moments = tmp_path / "whole", tmp_path / "run", random.Random(f"{mode} {options}"), []
    _, stderr = (undisturbed := fit(whole)).communicate()
    assert undisturbed.returncode == 0, stderr
    for _ in range(KILLS):
        further = ["--resume"] if (run / "recipe.yaml").exists() else []
        target = steps_of(run) + rng.randint(0, 3)
        with fit(run, *further) as process:
            while process.poll() is None and steps_of(run) <= target:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            process.kill()
            assert process.wait() == -9, process.stderr.read()
        moments.append(steps_of(run))
    _, stderr = (last := fit(run, "--resume")).communicate()
    assert last.returncode == 0, stderr
    print(f"{mode}, {options}: killed {KILLS} times after steps {moments}; nothing lost")
    one, other = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (whole, run))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert rows_of(whole, "train", "val") == rows_of(run, "train", "val")
