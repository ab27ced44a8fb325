"""Our metrics equal what the official scorers gave: fractions to 1e-9, percent files after their rounding."""

import json

import numpy as np
import pytest

from unloc.data.converters import convert
from unloc.data.prediction_reading import read_detections, read_moments
from unloc.evaluation.detection import ACTIVITYNET_THRESHOLDS, average_precision, detection
from unloc.evaluation.highlight import highlight_detection
from unloc.evaluation.qvhighlights import qvhighlights_moments
from unloc.evaluation.retrieval import moment_retrieval
from unloc.evaluation.segmentation import BACKGROUND, frame_map, painted

EXACT = 1e-7  # percent: 1e-9 as a fraction


@pytest.fixture(scope="session")
def golden(shared):
    return shared / "golden" / "metrics"


def load(path):
    return json.loads(path.read_text())


TAL = {
    "activitynet13_tal": ("activitynet", "validation", "activitynet", lambda entry: entry),
    "thumos14_tal": ("thumos14", "test", "thumos14", lambda entry: entry["tiou_0.3_0.7"]),
}


@pytest.mark.parametrize("name", TAL)
def test_detection_equals_the_official_scorer_per_class(golden, name):
    converter, split, protocol, pick = TAL[name]
    folder = golden / name / "set_A"
    manifest = convert(converter, [folder / "ground_truth.json"]).select(split)
    expected = load(folder / "expected.json")
    found = detection(read_detections(folder / "predictions_noties.json"), manifest, protocol)
    for threshold, value in pick(expected["noties"])["mAP"].items():
        assert found[f"mAP@{threshold}"] == pytest.approx(100 * value, abs=EXACT)
    assert found["mAP@avg"] == pytest.approx(100 * pick(expected["noties"])["average_mAP"], abs=EXACT)


def test_average_precision_of_every_class_equals_the_official_one(golden):
    folder = golden / "activitynet13_tal" / "set_A"
    manifest = convert("activitynet", [folder / "ground_truth.json"]).select("validation")
    detections = read_detections(folder / "predictions_noties.json")
    result = average_precision(detections, manifest.instances, ACTIVITYNET_THRESHOLDS)
    expected = load(folder / "expected_per_class_ap.json")
    per_class = next(value for key, value in expected.items() if "noties" in key)
    per_class = per_class.get("per_class", per_class.get("official", per_class))
    assert set(per_class) == set(result.classes)
    for name, values in zip(result.classes, result.values, strict=True):
        official = per_class[name]
        official = list(official.values()) if isinstance(official, dict) else official
        np.testing.assert_allclose(values, official, atol=1e-9)


MR = {
    "charades_sta": ("charades-sta", ["ground_truth.txt", "lengths.csv"]),
    "activitynet_captions": ("activitynet-captions", ["ground_truth.json"]),
}


@pytest.mark.parametrize("name", MR)
@pytest.mark.parametrize("protocol", ["default", "raw", "2d-tan"])
def test_moment_retrieval_equals_each_protocol(golden, name, protocol):
    converter, files = MR[name]
    folder = golden / name / "set_A"
    manifest = convert(converter, [folder / file for file in files], "val_2")
    expected = load(folder / "expected.json")["noties"]
    found = moment_retrieval(read_moments(folder / "predictions_noties.jsonl"), manifest, protocol)
    if protocol == "2d-tan":
        official = next(row for row in expected["two_d_tan_clamped_gt"] if row["nms_thresh"] == 0.5)
        keys = {f"R{n}@{m}": official[f"R@{n},IoU>{m}"] for n in (1, 5) for m in (0.5, 0.7)}
        keys["mIoU"] = official["mIoU"]
    else:
        official = expected["unloc_clamped_gt" if protocol == "default" else "unloc_raw_gt"]
        keys = {f"R{n}@{m}": official[f"R@{n},IOU={m}"] for n in (1, 5) for m in (0.5, 0.7)}
    for key, value in keys.items():
        assert found[key] == pytest.approx(100 * value, abs=EXACT), key


def test_qvhighlights_equals_the_official_evaluation_after_its_rounding(golden):
    folder = golden / "qvhighlights" / "set_A"
    manifest = convert("qvhighlights", [folder / "ground_truth.jsonl"], "val")
    predictions = read_moments(folder / "predictions.jsonl")
    found = qvhighlights_moments(predictions, manifest) | highlight_detection(predictions, manifest)
    expected = load(folder / "expected.json")
    for key, value in expected["main"]["brief"].items():
        assert round(found[key], 2) == pytest.approx(value, abs=1e-9), key
    for name, values in expected["main_unrounded"].items():
        if isinstance(values, dict) and "MR_mAP_average" in values:
            assert found[f"MR-{name}-mAP"] == pytest.approx(values["MR_mAP_average"], abs=1e-7), name


@pytest.mark.parametrize("rate", ["1fps_mmpt", "10fps_unloc"])
def test_coin_accuracy_and_map_equal_the_official_ones(golden, rate):
    folder = golden / "coin_segmentation" / "set_A"
    frames, expected = np.load(folder / f"frames_{rate}.npz"), load(folder / "expected.json")
    labels = frames["label"].astype(np.int64) - 1  # 0 is background there, -1 here
    accuracy = (labels == frames["pred"].astype(np.int64) - 1).mean()
    assert accuracy == pytest.approx(expected[rate]["mmpt_frame_acc"], abs=1e-9)
    scores = np.full((len(labels), 778), float(frames["fill"]), dtype=np.float32)
    np.put_along_axis(scores, frames["topk_class"].astype(np.int64), frames["topk_logit"].astype(np.float32), axis=1)
    found = frame_map(labels, scores.T)
    assert found["mAP"] == pytest.approx(100 * expected[rate]["unloc_map_present_classes_only"], abs=EXACT)
    assert found["mAP_all_classes"] == pytest.approx(100 * expected[rate]["unloc_map_sklearn_as_installed"], abs=EXACT)


def test_coin_segments_are_painted_as_videoclip_paints_them(golden):
    folder = golden / "coin_segmentation" / "set_A"
    frames = np.load(folder / "frames_1fps_mmpt.npz")
    manifest = convert("coin", [folder / "ground_truth.json"])
    database = load(folder / "ground_truth.json")["database"]
    for index, video_id in enumerate(frames["video"]):
        entry = database[str(video_id)]
        segments = np.asarray([item["segment"] for item in entry["annotation"]], dtype=float).reshape(-1, 2)
        ids = np.asarray([int(item["id"]) for item in entry["annotation"]])
        num_frames = int(np.ceil(entry["duration"]))
        ours = painted(segments, ids, num_frames, 1.0)
        official = frames["label"][frames["ptr"][index] : frames["ptr"][index + 1]]
        np.testing.assert_array_equal(np.where(ours == BACKGROUND, 0, ours), official)
    assert len(manifest.videos) == 300
