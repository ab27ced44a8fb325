"""What a run can be watched with: a picture of its curves, and Weights & Biases."""

import json
import sys

import pytest
from PIL import Image

from tests.training.test_trainer import Killed, at_step, kill, recipe_for
from unloc.recipes import dump_recipe
from unloc.training import trainer as trainer_module
from unloc.training.folder import draw_curves
from unloc.training.run import fit_recipe

EIGHT = ["train.epochs=0.4", "train.eval_every_epochs=0.15"]  # 8 steps, validated at 3, 6 and 8
FAKE = """
import json
from pathlib import Path

calls = Path(__file__).with_name("calls.jsonl")


class Error(Exception):
    pass


class Run:
    def define_metric(self, *names, **options):
        record("define_metric", options)

    def log(self, values):
        record("log", values)

    def finish(self):
        record("finish", {})


def record(name, values):
    with calls.open("a") as file:
        file.write(json.dumps([name, values]) + chr(10))


def init(**options):
    if options["project"] == "none":
        raise Error("no API key\\nconfigured")
    record("init", options)
    return Run()
"""


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, as here it is."""
    calls = []
    monkeypatch.setattr(trainer_module, "draw_curves", lambda run: calls.append(draw_curves(run)))
    return calls


def test_curves_are_drawn_at_validations_and_at_the_end(token_world, tmp_path, drawn):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        fit_recipe(recipe_for("mr", *EIGHT), *token_world, run, threads=1, on_step=at_step(4, kill))
    assert len(drawn) == 1
    before = (run / "curves.png").read_bytes()
    fit_recipe(recipe_for("mr", *EIGHT), *token_world, run, threads=1, resume=True)
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
    assert (run / "curves.png").read_bytes() != before and not list(run.rglob("*.part"))


def test_curves_of_a_run_without_validation(token_world, tmp_path, drawn):
    fit_recipe(recipe_for("as", "train.epochs=0.1", "data.val_split=''"), *token_world, tmp_path / "run", threads=1)
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.fixture
def wandb_calls(tmp_path, monkeypatch):
    """Stands for the package; returns what was called."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def test_a_run_and_its_resume_are_one_run_of_weights_and_biases(unloc, token_world, tmp_path, wandb_calls):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *EIGHT)))
    run, (manifest, cache) = tmp_path / "run", token_world
    words = ("fit", tmp_path / "recipe.yaml", "--manifest", manifest, "--cache", cache, "--work-dir", run)
    words += ("--threads", 1, "--wandb", "unloc")
    for resume in ([], ["--resume"]):
        code, _, err = unloc(*words, *resume)
        assert code == 0, err
    calls = wandb_calls()
    inits = [values for name, values in calls if name == "init"]
    assert inits[0] == inits[1] and inits[0]["project"] == "unloc" and inits[0]["resume"] == "allow"
    assert inits[0]["config"]["task"] == "mr" and inits[0]["name"] == "run" and inits[0]["id"]
    logged = [values for name, values in calls if name == "log"]
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == len(rows) and calls[-1] == ["finish", {}]
    for values, row in zip(logged, rows, strict=True):
        kind = row.pop("kind")
        assert values == {"step": row.pop("step")} | {f"{kind}/{key}": value for key, value in row.items()}


def test_what_weights_and_biases_lacks_is_one_line(unloc, token_world, tmp_path, wandb_calls, monkeypatch):
    manifest, cache = token_world
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *EIGHT)))
    words = ("fit", tmp_path / "recipe.yaml", "--manifest", manifest, "--cache", cache, "--work-dir", tmp_path / "run")
    code, _, err = unloc(*words, "--wandb", "none")
    assert code == 2 and err.count("\n") == 1 and "WANDB_MODE=offline" in err
    monkeypatch.setattr("unloc.training.folder.find_spec", lambda name: None)
    code, _, err = unloc(*words[:-1], tmp_path / "other", "--wandb", "unloc")
    assert code == 2 and err.count("\n") == 1 and "unloc[wandb]" in err and not (tmp_path / "other").exists()
