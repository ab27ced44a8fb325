"""`unloc eval RUN`: what it writes scores the same as a file, and asks the model for the manifest's classes."""

import json
from dataclasses import replace

import pytest

from tests.training.test_trainer import recipe_for
from unloc.data.schema import load_manifest, save_manifest
from unloc.training.run import fit_recipe


def report_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("task", ["mr", "tal", "as", pytest.param("hd", marks=pytest.mark.slow)])
def test_a_run_and_its_file_of_predictions_score_the_same(unloc, token_world, tmp_path, task):
    manifest, cache = token_world
    fit_recipe(recipe_for(task, "train.epochs=1"), manifest, cache, tmp_path / "run", threads=1)
    words = ("--manifest", manifest, "--split", "test")
    code, _, err = unloc(
        "eval", tmp_path / "run", *words, "--cache", cache, "--intervals", *["--analyse"] * (task == "tal")
    )
    folder = tmp_path / "run" / "eval" / "test"
    (file,) = folder.glob("predictions.json*")
    assert (code, err) == (0, "") and len(list(folder.glob("analysis/*.svg"))) == 3 * (task == "tal")
    first = report_of(folder)
    assert first["coverage"]["missing"] == [] and first["floors"] and first["intervals"]
    assert unloc("eval", "--predictions", file, *words, "--task", task, "--strict", "--out", tmp_path / "again")[0] == 0
    second = report_of(tmp_path / "again")
    assert second["metrics"] == pytest.approx(first["metrics"], nan_ok=True, abs=1e-4 if task == "as" else 1e-9)
    assert second["floors"] == first["floors"] and second["protocol"] == first["protocol"]


def test_a_run_is_asked_for_the_classes_of_the_manifest_in_its_order(unloc, token_world, tmp_path):
    manifest, cache = token_world
    fit_recipe(recipe_for("tal", "train.epochs=1"), manifest, cache, tmp_path / "run", threads=1)
    loaded = load_manifest(manifest)
    unseen = loaded.classes[:1]  # of the three that it was trained on: a leak, which is told
    kept = loaded.instances[loaded.instances["label"].isin(unseen)]
    save_manifest(replace(loaded, classes=unseen, instances=kept), tmp_path / "unseen.jsonl")
    words = ("--manifest", tmp_path / "unseen.jsonl", "--cache", cache, "--split", "test", "--out", tmp_path / "out")
    code, out, _ = unloc("eval", tmp_path / "run", *words)
    assert code == 0 and f"zero-shot: 1 of the manifest's classes were seen in training {unseen[0]}" in out
    assert list(report_of(tmp_path / "out")["classes_seen_in_training"]) == list(unseen)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())["results"]
    assert {item["label"] for items in results.values() for item in items} == set(unseen)
