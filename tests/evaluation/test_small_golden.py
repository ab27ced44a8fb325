"""Our metrics equal plain loops over a small synthetic set that is part of the project; and the loops equal the
official scorers, where their results are available."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.small import average_precision, load, same, tal_detections, tal_manifest
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.evaluation.detection import detection
from unloc.evaluation.evaluator import score
from unloc.evaluation.protocols import ACTIVITYNET_THRESHOLDS, THUMOS_THRESHOLDS
from unloc.evaluation.segmentation import action_segmentation
from unloc.predictions.records import FramePrediction, MomentPrediction

FOLDER = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def made():
    return load(FOLDER / "metrics.json")


@pytest.fixture(scope="module")
def loops():
    """The script that made the set, as a module."""
    spec = importlib.util.spec_from_file_location("make_metrics", FOLDER / "make_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("protocol", ["activitynet", "thumos14"])
def test_detection_equals_the_loops(made, protocol):
    held = made["detection"]
    manifest, detections = tal_manifest(held["truth"]), tal_detections(held["found"])
    thresholds = ACTIVITYNET_THRESHOLDS if protocol == "activitynet" else THUMOS_THRESHOLDS
    expected = held["average_precision"][protocol]
    found = average_precision(detections, manifest.instances, thresholds)
    for label, values in found.items():
        np.testing.assert_allclose(values, expected[label], rtol=0, atol=1e-12)
    metrics = detection(detections, manifest, protocol)
    assert same(metrics["mAP@avg"], 100 * np.mean(list(expected.values())))
    for name, value in held["recall"].items() if protocol == "thumos14" else ():
        assert same(metrics[name], 100 * value), name


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


def test_the_script_still_makes_what_is_stored(loops, made, monkeypatch, tmp_path):
    monkeypatch.setattr(loops, "__file__", str(tmp_path / "make_metrics.py"))
    loops.main()
    assert json.loads((tmp_path / "metrics.json").read_text()) == made


def test_the_loops_equal_the_official_scorer(loops, golden):
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
        values = loops.detection(*kept, loops.THUMOS)[label]
        np.testing.assert_allclose(values, expected[label], rtol=0, atol=1e-9)
