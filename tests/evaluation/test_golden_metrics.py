"""Our metrics equal those of the official scorers: fractions to 1e-9, percentages after their rounding."""

import json
from collections import defaultdict

import numpy as np
import pytest

from tests.evaluation.small import average_precision, load, same
from unloc.annotations.converters import convert
from unloc.annotations.reading import Problems
from unloc.annotations.schema import restricted
from unloc.evaluation.detection import detection
from unloc.evaluation.evaluator import evaluate, score
from unloc.evaluation.protocols import ACTIVITYNET_THRESHOLDS, THUMOS_THRESHOLDS
from unloc.evaluation.retrieval import moment_retrieval, official_report
from unloc.evaluation.screening import screen_moments
from unloc.evaluation.segmentation import action_segmentation
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import FramePrediction

EXACT = 1e-7  # percent: 1e-9 as a fraction
TAL = {
    "activitynet13_tal": ("activitynet", "validation", "activitynet", ACTIVITYNET_THRESHOLDS),
    "thumos14_tal": ("thumos14", "test", "thumos14", THUMOS_THRESHOLDS),
}


def tal_case(golden, name, kind):
    """(detections, selected manifest, what is expected) of a set, noties or ties."""
    folder, (converter, split, _, _) = golden / name / "set_A", TAL[name]
    manifest = convert(converter, [folder / "ground_truth.json"]).select(split)
    return (
        read_predictions(folder / f"predictions_{kind}.json", "tal").predictions,
        manifest,
        load(folder / "expected.json")[kind],
    )


def assert_detection(found, expected):
    for threshold, value in expected["mAP"].items():
        assert same(found[f"mAP@{threshold}"], 100 * value), threshold
    assert same(found["mAP@avg"], 100 * expected["average_mAP"])
    for threshold, recalls in expected.get("recall_topkx", {}).items():
        for multiple, value in recalls.items():
            assert same(found[f"recall@{multiple}@{threshold}"], 100 * value), (multiple, threshold)


@pytest.mark.parametrize("name", TAL)
def test_detection_equals_the_official_scorers(golden, name):
    detections, manifest, expected = tal_case(golden, name, "noties")
    own = expected if name == "activitynet13_tal" else expected["tiou_0.3_0.7"]
    assert_detection(detection(detections, manifest, TAL[name][2]), own)
    opentad, key = (
        ("opentad", "opentad") if name == "activitynet13_tal" else ("opentad-thumos14", "opentad_tiou_0.3_0.7")
    )
    assert_detection(detection(detections, manifest, opentad), expected[key])


@pytest.mark.parametrize("name", TAL)
def test_detection_equals_the_scorer_of_unloc_to_its_rounding(golden, name):
    detections, manifest, expected = tal_case(golden, name, "noties")
    protocol = "unloc" if name == "activitynet13_tal" else "unloc-thumos14"
    key = "0.5:0.05:0.95" if protocol == "unloc" else "0.3:0.1:0.7"
    # The scorer divides by all classes, which the taxonomy of the set names.
    assert len(manifest.classes) == {"unloc": 200, "unloc-thumos14": 20}[protocol]
    found, official = detection(detections, manifest, protocol), expected["unloc_scenic"]
    assert same(found["mAP@avg"], 100 * official[f"eval_detection/mAP@{key}IOU"])
    present = official.get(f"eval_detection_present_classes/mAP@{key}IOU")
    assert present is None or same(found["mAP_present_classes@avg"], 100 * present)
    for percent in range(5, 100, 5):
        assert same(found[f"mAP@{percent / 100:.2f}"], 100 * official[f"eval_detection/mAP@{percent / 100:.2f}IOU"])


@pytest.mark.parametrize("name", TAL)
def test_average_precision_of_every_class_equals_the_official_one(golden, name):
    detections, manifest, _ = tal_case(golden, name, "noties")
    _, split, protocol, thresholds = TAL[name]
    found = evaluate("tal", detections, manifest, split, protocol=protocol)["per_class"]
    expected = load(golden / name / "set_A" / "expected_per_class_ap.json")["noties"]
    assert set(expected) == set(found)
    for label, values in expected.items():
        for threshold, value in zip(thresholds, values, strict=True):
            assert same(found[label][f"AP@{threshold:.2f}"], 100 * value), (label, threshold)


def test_nine_thresholds_of_thumos_equal_the_official_ones(golden):
    detections, manifest, expected = tal_case(golden, "thumos14_tal", "noties")
    result = average_precision(detections, manifest.instances, np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(
        np.mean([*result.values()], axis=0), [*expected["tiou_0.1_0.9"]["mAP"].values()], atol=1e-9
    )


@pytest.mark.parametrize("name", TAL)
def test_ties_end_inside_the_span_of_the_official_tie_orders(golden, name):
    detections, manifest, expected = tal_case(golden, name, "ties")
    found, span = detection(detections, manifest, TAL[name][2]), expected["tie_order_study"]
    low = min(span[key] for key in ("random_order_min", "stable_rev", "stable_fwd"))
    high = max(span[key] for key in ("random_order_max", "stable_rev", "stable_fwd"))
    assert 100 * low - EXACT <= found["mAP@avg"] <= 100 * high + EXACT
    assert same(found["mAP@avg"], 100 * span["stable_rev"])  # the rule we state: the later entry goes first
    for threshold, value in span.get("per_threshold_min", {}).items():
        assert 100 * value - EXACT <= found[f"mAP@{threshold}"] <= 100 * span["per_threshold_max"][threshold] + EXACT


def test_blocked_videos_are_removed_from_both_sides(golden):
    detections, manifest, _ = tal_case(golden, "activitynet13_tal", "noties")
    expected = load(golden / "activitynet13_tal" / "set_A" / "expected.json")["noties_blocked"]
    blocked = set(expected["blocked"])
    kept = detections[~detections["video_id"].isin(blocked)]
    manifest = restricted(manifest, lambda video_id: video_id not in blocked)
    assert_detection(detection(kept, manifest, "activitynet"), expected)


MR = {
    "charades_sta": ("charades-sta", ["ground_truth.txt", "lengths.csv"]),
    "activitynet_captions": ("activitynet-captions", ["ground_truth.json"]),
}
TWO_D_TAN = {"2d-tan": 0.5, "2d-tan-nms-0.45": 0.45, "2d-tan-no-nms": 1.0}


def mr_case(golden, name, kind):
    """(predictions, manifest, what is expected) of a set."""
    converter, files = MR[name]
    folder = golden / name / "set_A"
    manifest = convert(converter, [folder / file for file in files], "val_2")
    expected = load(folder / "expected.json")
    return read_predictions(folder / f"predictions_{kind}.jsonl", "mr").predictions, manifest, expected[kind]


def by_unloc(expected):
    """Our names of UnLoc's keys."""
    words = {key: key.removeprefix("R@").split(",IOU=") for key in expected}
    return {f"R{rank}@{threshold}": expected[key] for key, (rank, threshold) in words.items()}


def by_the_later_first(folder, manifest, key):
    """A metric such as R5@0.5 in percent by the named tie rule, by plain loops over the file of predictions."""
    rank, threshold = key.removeprefix("R").split("@")
    lines = [json.loads(line) for line in (folder / "predictions_ties.jsonl").read_text().splitlines()]
    given = defaultdict(list)  # a sentence may occur twice in a video: in file order
    for row in lines:
        given[row["vid"], " ".join(row["query"].split())].append(row["pred_relevant_windows"])
    durations = dict(zip(manifest.videos["video_id"], manifest.videos["duration_seconds"], strict=True))
    hits = 0
    for query in manifest.queries.itertuples():
        left = given[query.video_id, " ".join(query.text.split())]
        windows = left.pop(0) if left else []
        order = sorted(range(len(windows)), key=lambda i: (windows[i][2], i), reverse=True)[: int(rank)]
        truth = [[min(max(t, 0.0), durations[query.video_id]) for t in segment] for segment in query.segments]
        hits += any(plain_iou(windows[i][:2], segment) >= float(threshold) for i in order for segment in truth)
    return 100.0 * hits / len(manifest.queries)


def plain_iou(one, other):
    overlap = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    union = (one[1] - one[0]) + (other[1] - other[0]) - overlap
    return overlap / union if union > 0 else 0.0


def by_2d_tan(expected):
    words = {key: key.removeprefix("R@").split(",IoU>") for key in expected if key.startswith("R@")}
    keys = {f"R{rank}@{at}": expected[key] for key, (rank, at) in words.items() if at != "0.1"}
    return keys | {"mIoU": expected["mIoU"]}


@pytest.mark.parametrize("name", MR)
@pytest.mark.parametrize("kind", ["noties", "ties"])
@pytest.mark.parametrize("protocol", TWO_D_TAN)
def test_moment_retrieval_equals_2d_tan(golden, name, kind, protocol):
    predictions, manifest, expected = mr_case(golden, name, kind)  # by the file's order: ties are exact
    runs = [*expected["two_d_tan_clamped_gt"], expected["two_d_tan_clamped_gt_no_nms"]]
    official = next((run for run in runs if run["nms_thresh"] == TWO_D_TAN[protocol]), None)
    if official is None:
        pytest.skip("this threshold was run on Charades-STA only")
    found = moment_retrieval(predictions, manifest, protocol)
    for key, value in by_2d_tan(official).items():
        assert same(found[key], 100 * value), key


@pytest.mark.parametrize("name", MR)
@pytest.mark.parametrize("protocol", ["default", "raw"])
def test_moment_retrieval_equals_unloc(golden, name, protocol):
    predictions, manifest, expected = mr_case(golden, name, "noties")
    found = moment_retrieval(predictions, manifest, protocol)
    for key, value in by_unloc(expected["unloc_clamped_gt" if protocol == "default" else "unloc_raw_gt"]).items():
        assert same(found[key], 100 * value), key


@pytest.mark.parametrize("name", MR)
def test_moment_retrieval_with_ties_goes_by_the_named_rule(golden, name):
    predictions, manifest, expected = mr_case(golden, name, "ties")
    found = moment_retrieval(predictions, manifest, "default")
    for key in by_unloc(expected["unloc_range_over_random_orders"]):
        assert same(found[key], by_the_later_first(golden / name / "set_A", manifest, key)), key


@pytest.mark.parametrize("name", MR)
def test_empty_lists_stay_in_the_denominator_and_extra_queries_are_left_out(golden, name):
    predictions, manifest, expected = mr_case(golden, name, "empty_and_extra")
    problems = Problems()
    found = moment_retrieval(screen_moments(predictions, manifest, problems), manifest, "default")
    for key, value in by_unloc(expected["unloc_clamped_gt"]).items():
        assert same(found[key], 100 * value), key
    assert any("empty list" in kind for kind in problems.counts) and any("unknown" in kind for kind in problems.counts)


@pytest.mark.parametrize("name", MR)
@pytest.mark.parametrize("kind", ["noties", "ties"])
@pytest.mark.parametrize("protocol", ["lighthouse", "lighthouse-raw"])
def test_moment_retrieval_equals_lighthouse_after_its_rounding(golden, name, kind, protocol):
    predictions, manifest, expected = mr_case(golden, name, kind)
    official = expected["lighthouse_clamped_gt" if protocol == "lighthouse" else "lighthouse_raw_gt"]
    report = official_report(score("mr", predictions, manifest, protocol))
    assert report["brief"] == official["brief"] and report["full"] == official["full"]


@pytest.fixture(scope="module")
def qvhighlights(golden):
    folder = golden / "qvhighlights" / "set_A"
    return folder, convert("qvhighlights", [folder / "ground_truth.jsonl"], "val"), load(folder / "expected.json")


def test_qvhighlights_equals_the_official_evaluation_after_its_rounding_and_before(qvhighlights):
    folder, manifest, expected = qvhighlights
    found = score("hd", read_predictions(folder / "predictions.jsonl", "mr").predictions, manifest, "moment_detr")
    report, official = official_report(found), expected["main"]
    assert set(report) == set(official)
    for key, values in official.items():
        assert report[key] == values, key
    for name, values in expected["main_unrounded"].items():
        assert same(found[f"MR-{name}-mAP"], values["MR_mAP_average"]), name
        for kind in ("mAP", "R1"):
            for threshold, value in values[f"MR_{kind}"].items():
                assert same(found[f"MR-{name}-{kind}@{float(threshold)}"], value), (name, kind, threshold)


def test_without_the_missing_queries_qvhighlights_scores_as_with_match_number_false(qvhighlights):
    folder, manifest, expected = qvhighlights
    predictions = read_predictions(folder / "predictions_mismatch.jsonl", "mr").predictions
    covered = evaluate("hd", predictions, manifest, "val")["coverage"]
    assert 0 < covered["queries_predicted"] < covered["queries_annotated"]
    found = official_report(covered["metrics_without_missing"])
    for key, values in expected["mismatch_match_number_false"].items():
        assert found[key] == values, key


def test_without_the_empty_list_qvhighlights_scores_as_the_official_map(qvhighlights):
    folder, manifest, expected = qvhighlights
    predictions = read_predictions(folder / "predictions_one_empty.jsonl", "mr").predictions
    report = evaluate("mr", predictions, manifest, "val")
    assert report["coverage"]["queries_predicted"] == len(manifest.queries) - 1
    found = official_report(report["coverage"]["metrics_without_missing"])
    assert found["full"]["MR-mAP"] == expected["one_empty_mr_map_only_full"]
    assert report["metrics"]["MR-full-mAP"] < 100  # with it: a miss, no crash


def test_the_shipped_sample_of_qvhighlights_gives_the_shipped_metrics(shared):
    folder = shared / "annotations" / "qvhighlights"
    manifest = convert("qvhighlights", [folder / "highlight_val_release.jsonl"]).select("val")
    found = official_report(
        score("hd", read_predictions(folder / "sample_val_preds.jsonl", "mr").predictions, manifest, "moment_detr")
    )
    shipped = load(folder / "sample_val_preds_metrics_raw.json")
    assert {key: found[key] for key in found if key in shipped} == {
        key: shipped[key] for key in found if key in shipped
    }
    assert "brief" in shipped and "full" in shipped


def test_qvhighlights_val_of_the_perf_case_equals_the_official_answer(golden, shared):
    manifest = convert("qvhighlights", [shared / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"])
    held = read_predictions(golden / "perf" / "qvhighlights_val_1550_predictions.jsonl.gz", "hd", problems=Problems())
    found = official_report(score("hd", held.predictions, manifest.select("val"), "moment_detr"))
    assert found == load(golden / "perf" / "other_timings.json")["qvhighlights_val_1550"]["full"]


# -- action segmentation --------------------------------------------------------------------------------------------


def scores_of(frames, rows):
    """(rows, 778) logits of a golden file, which keeps the best of each frame."""
    scores = np.full((len(frames["label"][rows]), 778), float(frames["fill"]), dtype=np.float32)
    classes, logits = frames["topk_class"][rows].astype(np.int64), frames["topk_logit"][rows].astype(np.float32)
    np.put_along_axis(scores, classes, logits, axis=1)
    return scores


@pytest.mark.parametrize(("rate", "protocol", "fps"), [("1fps_mmpt", "coin", 1.0), ("10fps_unloc", "unloc", 10.0)])
def test_coin_accuracy_and_map_from_segments_in_seconds_equal_the_official_ones(golden, rate, protocol, fps):
    folder = golden / "coin_segmentation" / "set_A"
    frames, expected = np.load(folder / f"frames_{rate}.npz"), load(folder / "expected.json")[rate]
    manifest, predictions = convert("coin", [folder / "ground_truth.json"]), []
    steps, ends = frames["pred"], frames["ptr"]
    for video_id, start, end in zip(frames["video"], ends[:-1], ends[1:], strict=True):
        labels = [manifest.classes[step - 1] if step else None for step in steps[start:end]]  # 0 is background there
        scores = scores_of(frames, slice(start, end))
        predictions.append(FramePrediction(video_id=str(video_id), fps=fps, labels=labels, scores=scores))
    manifest = restricted(manifest, {item.video_id for item in predictions}.__contains__)
    found = action_segmentation(predictions, manifest, protocol)
    assert same(found["frame_accuracy"], 100 * expected["mmpt_frame_acc"])
    assert same(found["mAP"], 100 * expected["unloc_map_present_classes_only"])
    assert same(found["mAP_all_classes"], 100 * expected["unloc_map_sklearn_as_installed"])
