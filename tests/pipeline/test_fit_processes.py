"""`unloc fit --workers N` on Ray: the result of undisturbed processes whatever ends one, errors in one line."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="Ray Train needs it: pip install 'ray[train]'")

from pipeline.fit import fit
from tests.training.test_several_tasks import cotrained
from tests.training.test_trainer import assert_same_runs, metrics_of, recipe_for
from unloc.errors import InputError, StoppedError, UnlocError
from unloc.recipes import dump_recipe
from unloc.training.run import fit_recipe

ROOT = Path(__file__).parents[2]
WORDS = ["train.epochs=15", "train.eval_every_epochs=6", "train.checkpoint_minutes=0.005"]  # 300 steps


@pytest.fixture(scope="module")
def whole(one_ray, token_world, tmp_path_factory) -> Path:
    """A run of two processes that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(recipe_for("mr", *WORDS), *token_world, run, workers=2, device="cpu")
    return run


def processes_of(run: Path) -> list[int]:
    """Process ids of the ranks that started last."""
    lines = re.findall(r"processes: (.*)", (run / "log.txt").read_text())
    return [int(pid) for pid in re.findall(r"process (\d+)", lines[-1])]


def once(action):
    """Calls the action after the first step that is seen."""
    done = []

    def on_step(step, total, values):
        if not done:
            done.append(step)
            action()

    return on_step


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_follow_one(one_ray, token_world, tmp_path):
    recipe, seen = recipe_for("mr", *WORDS, "train.epochs=2.5"), []
    two, options = tmp_path / "two", {"workers": 2, "device": "cpu"}
    metrics = fit(recipe, *token_world, two, **options, on_step=lambda *step: seen.append(step[:2]))
    assert seen == sorted(seen) and seen[-1] == (50, 50) and metrics["R1@0.5"] == rows_of(two)[-1]["R1@0.5"]
    assert json.loads((two / "env.json").read_text())["processes"] == 2
    fit_recipe(recipe, *token_world, tmp_path / "one", threads=1)
    losses = [[row["loss"] for row in rows_of(run) if row["kind"] == "train"] for run in (two, tmp_path / "one")]
    assert len(losses[0]) == 50 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_follow_one_with_several_tasks(unloc, one_ray, token_world, tmp_path, monkeypatch):
    recipe, (manifest, cache) = cotrained("train.epochs=0.3", "train.log_every=1"), token_world
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    monkeypatch.chdir(manifest.parent)  # other processes have another folder
    given = [word for task in recipe.tasks for word in ("--manifest", f"{task}={manifest.name}")]
    words = ["fit", tmp_path / "recipe.yaml", *given, "--cache", cache.name, "--device", "cpu"]
    for run, workers in (("one", 1), ("two", 2)):
        assert unloc(*words, "--work-dir", tmp_path / run, "--workers", workers)[0] == 0
    losses = [[row["loss"] for row in rows_of(tmp_path / run) if row["kind"] == "train"] for run in ("one", "two")]
    assert len(losses[0]) == 18 and losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_two_processes_repeat_to_the_bit(whole, token_world, tmp_path):
    fit(recipe_for("mr", *WORDS), *token_world, tmp_path / "run", workers=2, device="cpu")
    assert_same_runs(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank"), itertools.product(["KILL", "STOP"], [0, 1]))
def test_a_process_that_is_lost_changes_nothing(whole, token_world, tmp_path, caplog, name, rank):
    run = tmp_path / "run"
    action = once(lambda: os.kill(processes_of(run)[rank], getattr(signal, f"SIG{name}")))
    fit(recipe_for("mr", *WORDS), *token_world, run, workers=2, device="cpu", timeout=10, on_step=action)
    assert_same_runs(whole, run)
    (note,) = [record.getMessage() for record in caplog.records if "all start again" in record.getMessage()]
    assert "\n" not in note and len(re.findall("processes: ", (run / "log.txt").read_text())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["command", 0, 1])
def test_sigterm_stops_all_after_one_step_and_the_resumed_run_ends_the_same(whole, token_world, tmp_path, whom):
    run, recipe = tmp_path / "run", recipe_for("mr", *WORDS)
    action = once(lambda: os.kill(os.getpid() if whom == "command" else processes_of(run)[whom], signal.SIGTERM))
    with pytest.raises(StoppedError, match="--resume"):
        fit(recipe, *token_world, run, workers=2, device="cpu", on_step=action)
    assert 0 < json.loads((run / "checkpoints" / "last" / "checkpoint.json").read_text())["step"] < 300
    fit(recipe, *token_world, run, workers=2, device="cpu", resume=True)
    assert_same_runs(whole, run)


def test_errors_are_those_of_one_process_and_nothing_is_tried_again(unloc, one_ray, token_world, tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS)))
    manifest, cache = token_world
    words = ["fit", tmp_path / "recipe.yaml", "--manifest", manifest, "--cache", cache, "--device", "cpu"]
    for other, named in {
        ("--workers", 9): "--workers 4",
        ("--workers", 4, "train.batch_size=3"): "--workers 2",
        ("--workers", 2, "optim.lr=1e30", "optim.name=sgd"): "diverged",
        ("--workers", 2, "--device", "cuda:1"): "cuda:1",
        ("--workers", 2, "--resume"): "nothing to resume",
    }.items():
        code, _, err = unloc(*words, "--work-dir", tmp_path / "run", *other)
        assert code == 2 and err.count("\n") == 1 and named in err, err
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert "start again" not in caplog.text


@pytest.mark.slow
def test_a_full_disk_in_a_process_is_one_line(one_ray, token_world, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "env.json").write_text("{}")
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UnlocError, match="no space left"):
        fit(recipe_for("mr", *WORDS), *token_world, run, workers=2, device="cpu")


@pytest.mark.slow
def test_another_run_under_the_same_name_starts_anew(whole, token_world, tmp_path):
    run, recipe = tmp_path / "run", recipe_for("mr", *WORDS, "train.epochs=0.3", "train.eval_every_epochs=1")
    fit(recipe, *token_world, run, workers=2, device="cpu")
    first = metrics_of(run)
    shutil.rmtree(run)
    fit(recipe, *token_world, run, workers=2, device="cpu")
    assert metrics_of(run) == first and rows_of(run)[0]["step"] == 1
    with pytest.raises(InputError, match="a run already"):
        fit(recipe, *token_world, run, workers=2, device="cpu")
    fit(recipe, *token_world, run, workers=3, device="cpu", overwrite=True)
    assert len(metrics_of(run)) == len(first)


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_and_its_run_resumes(whole, token_world, tmp_path):
    run, (manifest, cache) = tmp_path / "run", token_world
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS)))
    words = ["fit", tmp_path / "recipe.yaml", "--manifest", manifest, "--cache", cache, "--work-dir", run]
    words += ["--workers", 2, "--device", "cpu"]
    command = subprocess.Popen([sys.executable, "-m", "unloc", *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE)
    while command.poll() is None and not (run / "checkpoints" / "last").is_symlink():
        time.sleep(0.05)
    command.kill()
    command.communicate()
    assert command.returncode == -signal.SIGKILL
    pids, until = processes_of(run), time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(alive, pids))
    fit(recipe_for("mr", *WORDS), manifest, cache, run, workers=2, device="cpu", resume=True)
    assert_same_runs(whole, run)
