"""Whatever ends a run, what is kept is whole, and the run goes on from it: kills, SIGTERM, divergence, a full disk."""

import json
import os
import re
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.processes import start_unloc
from tests.training.test_trainer import Killed, assert_same_runs, at_step, kill, recipe_for, weights_of
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.errors import CacheError, ConfigError, DivergedError, InputError, StoppedError
from unloc.recipes import dump_recipe
from unloc.training import run as run_module
from unloc.training import trainer as trainer_module
from unloc.training.run import fit_recipe

WORDS = ["train.epochs=0.4", "train.eval_every_epochs=0.15"]  # 8 steps, validated at 3, 6 and 8


@pytest.fixture(scope="module")
def whole(token_world, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit_recipe(recipe_for("mr", *WORDS), *token_world, run, threads=1)
    return run


def fit_options(world, run):
    manifest, cache = world
    return ("--manifest", manifest, "--cache", cache, "--work-dir", run, "--threads", 1)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def step_of(run: Path) -> int:
    return json.loads((run / "checkpoints" / "last" / "checkpoint.json").read_text())["step"]


def metrics_of(run: Path) -> dict[str, float]:
    return json.loads((run / "checkpoints" / "last" / "checkpoint.json").read_text())["metrics"]


@pytest.mark.parametrize("step", [1, 6, 7])
def test_sigterm_keeps_the_step_that_is_done_and_the_resumed_run_ends_in_the_same_bits(
    token_world, tmp_path, whole, step
):
    recipe, run = recipe_for("mr", *WORDS), tmp_path / "run"
    with pytest.raises(StoppedError, match="--resume"):
        fit_recipe(recipe, *token_world, run, threads=1, on_step=at_step(step, terminate))
    assert step_of(run) == step
    fit_recipe(recipe, *token_world, run, threads=1, resume=True)
    assert_same_runs(whole, run)


@pytest.mark.parametrize("number", [1, 3])
def test_sigterm_ends_a_validation_at_once_and_the_resumed_run_does_it_again(
    token_world, tmp_path, whole, monkeypatch, number
):
    recipe, run, calls, predict_split = recipe_for("mr", *WORDS), tmp_path / "run", [], run_module.predict_split

    def stopped_once(*arguments):
        calls.append(1)
        if len(calls) == number:
            terminate()
        return predict_split(*arguments)

    monkeypatch.setattr(run_module, "predict_split", stopped_once)
    with pytest.raises(StoppedError):
        fit_recipe(recipe, *token_world, run, threads=1)
    assert step_of(run) == (3, 6, 8)[number - 1]
    metrics = fit_recipe(recipe, *token_world, run, threads=1, resume=True)
    assert_same_runs(whole, run)
    assert metrics_of(run) == pytest.approx(metrics, nan_ok=True) and metrics


def test_checkpoints_by_time_change_nothing_and_are_where_a_killed_run_goes_on(token_world, tmp_path, whole):
    recipe, run = recipe_for("mr", *WORDS, "train.checkpoint_minutes=1e-9"), tmp_path / "run"
    for step in (2, 4, 7):
        resumed = (run / "recipe.yaml").is_file()
        with pytest.raises(Killed):
            fit_recipe(recipe, *token_world, run, threads=1, resume=resumed, on_step=at_step(step, kill))
        assert step_of(run) == step - 1
    fit_recipe(recipe_for("mr", *WORDS), *token_world, run, threads=1, resume=True)  # how often is no other recipe
    assert_same_runs(whole, run)


def test_a_folder_that_is_trained_into_is_locked_and_free_again_after_a_sigkill(token_world, tmp_path, whole):
    recipe, run = recipe_for("mr", *WORDS), tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    words = ["fit", tmp_path / "recipe.yaml", "train.checkpoint_minutes=0.001", *fit_options(token_world, run)]
    process = start_unloc(*words, errors=tmp_path / "errors")
    while process.is_alive() and not (run / "metrics.jsonl").is_file():
        time.sleep(0.01)
    with pytest.raises(CacheError, match=f"process {process.pid}"):
        fit_recipe(recipe, *token_world, run, threads=1, overwrite=True)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "errors").read_text()
    fit_recipe(recipe, *token_world, run, threads=1, resume=True)
    assert_same_runs(whole, run)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights_and_its_videos_are_named(
    token_world, tmp_path, monkeypatch, what
):
    losses_of, calls, seen = trainer_module.part_losses, [], []

    def broken(model, part, recipe):
        losses = losses_of(model, part, recipe)
        calls.append(1)
        if len(calls) != 5:
            return losses
        seen.append((model, {key: value.clone() for key, value in model.state_dict().items()}, part.batch))
        total = losses["loss"]
        if what == "gradient":
            total.register_hook(lambda gradient: gradient * float("nan"))
        return losses | {"loss": total * float("nan") if what == "loss" else total * 1.0}

    monkeypatch.setattr(trainer_module, "part_losses", broken)
    with pytest.raises(DivergedError) as raised:
        fit_recipe(recipe_for("mr", *WORDS), *token_world, tmp_path / "run", threads=1)
    model, before, batch = seen[0]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(video_id in str(raised.value) for video_id in batch.video_ids) and "\n" not in str(raised.value)
    assert step_of(tmp_path / "run") == 3


def test_a_run_that_diverged_goes_on_from_its_last_good_step_with_other_rates_on_record(unloc, token_world, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS, "data.val_split=''")))
    words = ("fit", tmp_path / "recipe.yaml", *fit_options(token_world, run))
    lr = ("optim.lr=1e30", "optim.name=sgd", "train.checkpoint_minutes=1e-9")
    code, _, err = unloc(*words, *lr)
    assert code == 2 and err.count("\n") == 1 and "--change-optim" in err and "step 0 is good" in err
    assert all(value.isfinite().all() for value in weights_of(run).values())
    # Not without the word for it, and SGD's state is not Adam's.
    for refused in (("optim.lr=0.01", "optim.name=sgd"), ("optim.lr=0.01", "--change-optim")):
        code, _, err = unloc(*words, "--resume", *refused)
        assert code == 2 and "optim." in err and err.count("\n") == 1
    lower = ("optim.lr=0.01", "optim.weight_decay=0.5", "optim.name=sgd")
    assert unloc(*words, *lower, "--resume", "--change-optim")[0] == 0
    (change,) = json.loads((run / "env.json").read_text())["changes"]
    assert change["step"] == 0 and change["changed"]["optim.lr"] == [1e30, 0.01]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 9)) and max(row["lr"] for row in rows) == 0.01
    state = torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert unloc(*words, *lower, "--resume")[0] == 0  # these are its values now


def test_a_recipe_is_compared_by_value_and_every_other_value_is_named(token_world, tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    older = (run / "recipe.yaml").read_text().replace("  checkpoint_minutes: 10.0\n", "")
    (run / "recipe.yaml").write_text("# by hand\n" + older)
    fit_recipe(recipe_for("mr", *WORDS), *token_world, run, threads=1, resume=True)
    assert_same_runs(whole, run)
    with pytest.raises(ConfigError, match=r"train\.seed.*0.*4"):
        fit_recipe(recipe_for("mr", *WORDS, "train.seed=4"), *token_world, run, threads=1, resume=True)


def test_a_run_is_resumed_on_its_own_data_only_wherever_that_lies(token_world, tmp_path, whole, caplog):
    manifest, cache = token_world
    recipe, run = recipe_for("mr", *WORDS), tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    loaded = load_manifest(manifest)
    later = [[[start + 0.5, end + 0.5] for start, end in row] for row in loaded.queries["segments"]]
    shifted = loaded.queries.assign(segments=later)
    save_manifest(replace(loaded, queries=shifted), tmp_path / "shifted.jsonl")
    with pytest.raises(InputError, match="annotations"):
        fit_recipe(recipe, tmp_path / "shifted.jsonl", cache, run, threads=1, resume=True)
    fewer = loaded.videos[loaded.videos["video_id"] != "v3"]
    queries = loaded.queries[loaded.queries["video_id"] != "v3"]
    save_manifest(replace(loaded, videos=fewer, queries=queries), tmp_path / "fewer.jsonl")
    with pytest.raises(InputError, match="cached videos"):
        fit_recipe(recipe, tmp_path / "fewer.jsonl", cache, run, threads=1, resume=True)
    shutil.copy(manifest, tmp_path / "same.jsonl")
    shutil.copytree(cache, tmp_path / "cache")
    fit_recipe(recipe, tmp_path / "same.jsonl", tmp_path / "cache", run, threads=2, resume=True)
    assert re.search("threads: .* 1, now 2", caplog.text)


@contextmanager
def file_size_limit(num_bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["env.json", "checkpoint", "metrics.jsonl", "log.txt", "tensorboard"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    unloc, token_world, tmp_path, whole, monkeypatch, what
):
    run, limit = tmp_path / "run", {"env.json": 64, "checkpoint": 20_000}.get(what)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS)))
    words = ("fit", tmp_path / "recipe.yaml", *fit_options(token_world, run))
    if limit is not None:
        with file_size_limit(limit):
            code, _, err = unloc(*words)
    else:
        full = {"tensorboard": run / "tensorboard" / f"events.out.tfevents.7.{os.getpid()}"}.get(what, run / what)
        full.parent.mkdir(parents=True)
        (run / "env.json").write_text("{}")
        full.symlink_to("/dev/full")
        with monkeypatch.context() as patched:
            patched.setattr(time, "time_ns", lambda: 7)
            code, _, err = unloc(*words)
        full.unlink()
    assert code == 2 and err.count("\n") == 1 and "no space left" in err
    assert not list(run.rglob("*.part")) and not (run / "lock").exists()
    assert unloc(*words, *["--resume"] * (run / "recipe.yaml").is_file())[0] == 0
    assert_same_runs(whole, run)


def test_a_mistake_in_the_inputs_leaves_no_folder(unloc, tmp_path):
    words = ("--manifest", tmp_path / "absent.jsonl", "--cache", tmp_path / "absent")
    code, _, errors = unloc("fit", "synth_mr", *words, "--work-dir", tmp_path / "a/b/run")
    assert code == 2 and "absent.jsonl does not exist" in errors and not list(tmp_path.iterdir())


def test_a_finished_run_answers_with_its_metrics_again(token_world, tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    metrics = fit_recipe(recipe_for("mr", *WORDS), *token_world, run, threads=1, resume=True)
    assert metrics_of(run) == pytest.approx(metrics, nan_ok=True) and metrics
