"""`unloc fit own`: from own files and words to a trained model, or one line that says what is missing."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import render_video
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.cli import app
from unloc.errors import InputError, MissingError
from unloc.inference.load import load_model
from unloc.training import own
from unloc.training.own import own_recipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with videos, labels.csv, its manifest and cache."""
    folder, lines = tmp_path_factory.mktemp("own"), ["video,start,end,query,label,split"]
    (folder / "videos").mkdir()
    for number in range(6):
        render_video(folder / "videos" / f"clip {number}.mp4", num_frames=30 + number, seed=number)
        split = "val" if number > 3 else "train"
        lines += [f"clip {number}.mp4,0.3,2.0,the square moves {number},moves,{split}"]
        lines += [f"clip {number}.mp4,0.1,1.0,it begins {number},begins,{split}"]
    (folder / "labels.csv").write_text("\n".join(lines))
    videos = ["--videos", folder / "videos"]
    for words in (
        ["data", "convert", "csv", "--annotations", folder / "labels.csv", *videos, "--out", folder / "m.jsonl"],
        ["extract", folder / "m.jsonl", *videos, "--cache", folder / "cache", "--frames", 40, "--workers", 0],
    ):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(("task", "examples"), [("mr", 8), ("tal", 4), ("as", 4)])
def test_sizes_follow_from_the_data(files, task, examples):
    recipe = own_recipe(files / "m.jsonl", files / "cache", [f"task={task}"], threads=1)
    assert (recipe.name, recipe.task, recipe.train.batch_size) == (f"own_{task}", task, examples)
    assert (recipe.data.num_steps, recipe.data.train_split, recipe.data.val_split) == (64, "train", "val")
    assert recipe.train.epochs == 100


def test_a_csv_becomes_a_model_that_is_evaluated(files, tmp_path, unloc):
    run = tmp_path / "run"
    data = ["--manifest", files / "m.jsonl", "--cache", files / "cache"]
    words = ["fit", "own", "task=mr", "train.epochs=2", *data, "--work-dir", run, "--threads", 1]
    code, _, stderr = unloc(*words)
    assert code == 0, stderr
    assert "8 examples of 4 videos (train)" in stderr and "0:00:0" in stderr
    assert load_model(run).info.recipe.name == "own_mr"
    code, _, stderr = unloc(*words, "--resume")
    assert code == 0, stderr
    code, _, stderr = unloc("eval", run, *data, "--split", "val")
    assert code == 0, stderr
    assert "R1@0.5" in json.loads((run / "eval" / "val" / "metrics.json").read_text())["metrics"]


def test_measuring_a_step_leaves_the_result_as_it_is(files, tmp_path, unloc):
    data = ["--manifest", files / "m.jsonl", "--cache", files / "cache", "--threads", 1]
    assert unloc("fit", "own", "task=tal", "train.epochs=2", *data, "--work-dir", tmp_path / "own")[0] == 0
    assert unloc("fit", tmp_path / "own" / "recipe.yaml", *data, "--work-dir", tmp_path / "same")[0] == 0
    one, same = (load_model(tmp_path / name).model.state_dict() for name in ("own", "same"))
    assert all(torch.equal(one[key], same[key]) for key in one)


def test_what_cannot_be_chosen_or_cannot_end_is_refused(files, tmp_path, unloc, monkeypatch):
    manifest, cache = files / "m.jsonl", files / "cache"
    with pytest.raises(InputError, match="task=mr"):
        own_recipe(manifest, cache)
    loaded = load_manifest(manifest)
    for table in (loaded.videos, loaded.queries, loaded.instances):
        table["split"] = table["split"].replace("train", "mine")
    save_manifest(loaded, tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match=r"data\.train_split=NAME"):
        own_recipe(tmp_path / "mine.jsonl", cache, ["task=mr"])
    recipe = own_recipe(tmp_path / "mine.jsonl", cache, ["task=mr", "data.train_split=mine", "data.val_split="])
    assert (recipe.data.train_split, recipe.data.val_split) == ("mine", "")
    with pytest.raises(MissingError, match="other"):
        own_recipe(manifest, cache, ["task=mr", "data.train_split=other"])
    monkeypatch.setattr(own, "LIMIT_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"hours on cpu.*train\.epochs"):
        own_recipe(manifest, cache, ["task=mr"])
    code, _, stderr = unloc("fit", "own", "--manifest", manifest, "--work-dir", tmp_path / "run")
    assert code == 2 and "--cache" in stderr and not (tmp_path / "run").exists()
