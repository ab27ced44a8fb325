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


def rows_of(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def reproducible(run: Path) -> list[dict]:
    return [row for row in rows_of(run) if row["kind"] != "speed"]


@pytest.mark.slow
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("mode", list(MODES))
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(world, cache, tmp_path, mode, options):  # noqa: F811
    data = ["--frames", world[1]] if mode.startswith("frames") else ["--cache", cache]
    words = ["fit", "synth_mr", *SMALL, *MODES[mode], "train.epochs=4", "train.checkpoint_minutes=1e-9"]
    words += ["train.log_every=1", "--manifest", world[0], *data, "--threads", 1, *OPTIONS[options], "--work-dir"]

    def fit(run: Path, *further: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "unloc", *map(str, [*words, run, *further])]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole, run, rng, moments = tmp_path / "whole", tmp_path / "run", random.Random(f"{mode} {options}"), []
    _, stderr = (undisturbed := fit(whole)).communicate()
    assert undisturbed.returncode == 0, stderr
    total = rows_of(whole)[-1]["step"]
    for _ in range(KILLS):
        further = ["--resume"] if (run / "recipe.yaml").exists() else []
        done = len(rows_of(run))
        target = rng.randint(done, min(done + 3, total - 1))
        with fit(run, *further) as process:
            while process.poll() is None and len(rows_of(run)) <= target:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            process.kill()
            assert process.wait() in (-9, 0), process.stderr.read()
        moments.append(len(rows_of(run)))
    _, stderr = (last := fit(run, "--resume")).communicate()
    assert last.returncode == 0, stderr
    print(f"{mode}, {options}: killed {KILLS} times after rows {moments}; nothing lost")
    one, other = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (whole, run))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert reproducible(whole) == reproducible(run)
