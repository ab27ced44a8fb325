"""`unloc eval RUN`: what it writes scores the same as a file, and asks the model for the manifest's classes."""

import json
import zipfile
from dataclasses import replace

import pandas as pd
import pytest

from tests.training.test_trainer import recipe_for
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.predictions.reading import read_predictions
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


def test_a_run_is_scored_with_sentences_that_are_not_in_their_video(unloc, token_world, tmp_path):
    manifest, cache = token_world
    fit_recipe(recipe_for("mr", "train.epochs=0.3"), manifest, cache, tmp_path / "run", threads=1)
    loaded = load_manifest(manifest)
    shown = loaded.queries.groupby("video_id")["text"].agg(set)
    rows = loaded.queries.drop_duplicates("video_id")
    texts = [next(iter(set(loaded.classes) - shown[video_id])) for video_id in rows["video_id"]]  # the third of three
    null = rows.assign(text=texts, qid="null-" + rows["qid"], segments=[[]] * len(rows))
    null["relevant_clip_ids"] = null["saliency_scores"] = None
    with_null = replace(loaded, queries=pd.concat([loaded.queries, null], ignore_index=True))
    save_manifest(with_null, tmp_path / "null.jsonl")
    words = ("--manifest", tmp_path / "null.jsonl", "--split", "test", "--rejection")
    code, out, err = unloc("eval", tmp_path / "run", *words, "--cache", cache)
    assert (code, err) == (0, "") and "reject_all" in out
    folder = tmp_path / "run/eval/test"
    first = report_of(folder)
    assert first["metrics"]["AUROC"] > 95 and first["coverage"]["queries_predicted"] == 30
    assert first["coverage"]["existence_stated"] == 30
    scored = ("--predictions", folder / "predictions.jsonl", *words, "--out", tmp_path / "again")
    assert unloc("eval", *scored)[0] == 0 and report_of(tmp_path / "again")["metrics"] == first["metrics"]
    (tmp_path / "run/checkpoints/best/calibration.json").unlink()  # the best window's score is worse
    assert unloc("eval", tmp_path / "run", *words, "--cache", cache)[0] == 0
    assert report_of(folder)["metrics"]["AUROC"] < 95 and not report_of(folder)["coverage"]["existence_stated"]


def test_a_run_is_asked_for_the_classes_of_the_manifest_in_its_order(unloc, token_world, tmp_path):
    manifest, cache = token_world
    fit_recipe(recipe_for("tal", "train.epochs=1"), manifest, cache, tmp_path / "run", threads=1)
    loaded = load_manifest(manifest)
    unseen = loaded.classes[:1]  # of the three that it was trained on: a leak, which is told
    kept = loaded.instances[loaded.instances["label"].isin(unseen)]
    save_manifest(replace(loaded, classes=unseen, instances=kept), tmp_path / "unseen.jsonl")
    words = ("--manifest", tmp_path / "unseen.jsonl", "--cache", cache, "--split", "test", "--out", tmp_path / "out")
    code, out, _ = unloc("eval", tmp_path / "run", *words)
    assert code == 0 and f"seen in training {unseen[0]}" in out
    assert list(report_of(tmp_path / "out")["classes_seen_in_training"]) == list(unseen)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())["results"]
    assert {item["label"] for items in results.values() for item in items} == set(unseen)


def test_predictions_are_exported_also_of_a_hidden_split_and_floors_fitted_where_asked(unloc, token_world, tmp_path):
    manifest, cache = token_world
    run = tmp_path / "run"
    fit_recipe(recipe_for("mr", "train.epochs=0.3"), manifest, cache, run, threads=1)
    words = ("--manifest", manifest, "--cache", cache, "--split", "test", "--out", tmp_path / "m.json")
    code, _, err = unloc("eval", run, *words, "--train-split", "test", "--export", tmp_path / "x.zip")
    floors = json.loads((tmp_path / "m.json").read_text())["floors"]
    assert unloc("eval", run, *words)[0] == 0 == code, err
    assert floors["blind_constant"] != json.loads((tmp_path / "m.json").read_text())["floors"]["blind_constant"]
    loaded = load_manifest(manifest)
    hidden = loaded.queries.assign(segments=[[] for _ in range(len(loaded.queries))])
    save_manifest(replace(loaded, queries=hidden), tmp_path / "hidden.jsonl")
    words = ("--manifest", tmp_path / "hidden.jsonl", *words[2:])
    code, out, err = unloc("eval", run, *words, "--export", tmp_path / "y.zip")
    assert (code, err) == (0, "") and "nothing is scored" in out and f"wrote {tmp_path / 'y.zip'}" in out
    for split in ("val", "test"):  # the server takes both in one zip
        files = [read_predictions(tmp_path / name, "mr", split=split) for name in ("x.zip", "y.zip")]
        same = [file.predictions[0].windows.tolist() for file in files]
        assert same[0] == same[1] and len(same[0]) and f"hl_{split}_submission.jsonl" in files[0].format
    assert zipfile.ZipFile(tmp_path / "x.zip").namelist() == ["hl_test_submission.jsonl", "hl_val_submission.jsonl"]
    code, _, err = unloc("eval", run, *words[:-1], tmp_path / "none")
    assert code == 2 and "split hidden?" in err and not (tmp_path / "none").exists()
    assert "--task tal, but" in unloc("eval", run, *words, "--task", "tal")[2]


def test_a_baseline_writes_its_predictions_beside_the_report(unloc, token_world, tmp_path):
    manifest, cache = token_world
    words = ("--manifest", manifest, "--cache", cache, "--split", "test", "--task", "tal", "--external-labels")
    code, out, err = unloc("eval", "--baseline", *words, "--out", tmp_path / "m.json")
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert (code, err) == (0, "") and written["external_data"] == {"used": True} and "external labels: used" in out
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]
