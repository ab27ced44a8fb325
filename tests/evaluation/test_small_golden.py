"""Our metrics equal plain loops over a small synthetic set that is part of the project; and the loops equal the
official scorers, where their results are available."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.small import load, same, tal_detections, tal_manifest
from tests.golden import make_metrics
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.evaluation.evaluator import evaluate, score
from unloc.evaluation.segmentation import action_segmentation
from unloc.predictions.records import FramePrediction, MomentPrediction


@pytest.fixture(scope="module")
def made():
    return load(Path(make_metrics.__file__).with_name("metrics.json"))


@pytest.mark.parametrize("protocol", ["activitynet", "thumos14"])
def test_detection_equals_the_loops(made, protocol):
    held = made["detection"]
    manifest, detections = tal_manifest(held["truth"]), tal_detections(held["found"])
    expected = held["average_precision"][protocol]
    report = evaluate("tal", detections, manifest, "test", protocol=protocol)
    assert set(report["per_class"]) == set(expected)
    for label, values in expected.items():
        values = 100 * np.array([*values, np.mean(values)])
        np.testing.assert_allclose([*report["per_class"][label].values()], values, rtol=0, atol=1e-10)
    assert same(report["metrics"]["mAP@avg"], 100 * np.mean(list(expected.values())))
    for name, value in held["recall"].items() if protocol == "thumos14" else ():
        assert same(report["metrics"][name], 100 * value), name


@pytest.mark.parametrize("protocol", ["default", "2d-tan", "moment_detr"])
def test_moments_and_highlights_equal_the_loops(made, protocol):
    rows, predictions = [], []
    for number, query in enumerate(made["moments"]["queries"]):
        names = {"qid": str(number), "video_id": f"v{number}", "query": "a cat"}
        rows.append(VideoRow(f"v{number}", "test", query["duration"]))
        rows.append(
            QueryRow(f"v{number}", "test", str(number), "a cat", query["windows"], query["clips"], query["ratings"])
        )
        saliency = np.array(query["saliency"][:20])
        predictions.append(MomentPrediction(**names, windows=np.array(query["predicted"]), saliency=saliency))
    manifest = build_manifest(name="small", tasks=("mr", "hd"), rows=rows)
    found = score("hd" if protocol == "moment_detr" else "mr", predictions, manifest, protocol)
    for name, value in made["moments"][protocol].items():
        assert same(found[name], 100 * value), name


@pytest.mark.parametrize("protocol", ["coin", "unloc"])
@pytest.mark.parametrize("fps", ["1", "2", "10"])
def test_frames_at_every_rate_equal_the_loops(made, fps, protocol):
    held, rows, predictions = made["frames"], [], []
    for name, video in held["videos"].items():
        rows.append(VideoRow(name, "test", video["duration"]))
        rows += [InstanceRow(name, "test", label, segment) for label, *segment in video["segments"]]
        given = video["predicted"][fps]
        scores = np.array(given["scores"])
        predictions.append(FramePrediction(video_id=name, fps=float(fps), labels=given["labels"], scores=scores))
    manifest = build_manifest(name="small", tasks=("as",), rows=rows, classes=held["classes"])
    found = action_segmentation(predictions, manifest, protocol)
    for name, value in held["expected"][fps][protocol].items():
        assert same(found[name], 100 * value), name


def test_the_script_still_makes_what_is_stored(made, monkeypatch, tmp_path):
    monkeypatch.setattr(make_metrics, "__file__", str(tmp_path / "make_metrics.py"))
    make_metrics.main()
    assert json.loads((tmp_path / "metrics.json").read_text()) == made


def test_the_loops_equal_the_official_scorer(golden):
    folder = golden / "thumos14_tal" / "set_A"
    database = load(folder / "ground_truth.json")["database"]
    truth = {
        video: [(item["label"], *item["segment"]) for item in entry["annotations"]]
        for video, entry in database.items()
        if entry["subset"].lower() == "test"
    }
    results = load(folder / "predictions_noties.json")["results"]
    found = {v: [(i["label"], *i["segment"], i["score"]) for i in items] for v, items in results.items()}
    expected = load(folder / "expected_per_class_ap.json")["noties"]
    for label in ("Diving", "CleanAndJerk", "HighJump"):
        kept = [{v: [i for i in items if i[0] == label] for v, items in rows.items()} for rows in (found, truth)]
        values = make_metrics.detection(*kept, make_metrics.THUMOS)[label]
        np.testing.assert_allclose(values, expected[label], rtol=0, atol=1e-9)
