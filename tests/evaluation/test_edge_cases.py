"""All 39 edge cases of the references: the official result, or ours where the official code crashes."""

import json

import pytest

from tests.conftest import SHARED
from tests.evaluation.small import average_precision, moments, query_manifest, same, tal_detections, tal_manifest
from unloc.annotations.reading import Problems
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest
from unloc.evaluation.detection import detection
from unloc.evaluation.protocols import ACTIVITYNET_THRESHOLDS
from unloc.evaluation.retrieval import QVHIGHLIGHTS_THRESHOLDS, moment_retrieval
from unloc.evaluation.screening import UNKNOWN_LABEL, screen_detections

FOLDER = SHARED / "golden" / "metrics" / "edge_cases"


def cases(name):
    """The cases of a file; one that is skipped with a reason where the references are not here."""
    if not FOLDER.is_dir():
        return [pytest.param({}, marks=pytest.mark.skip(reason="../shared is not here"))]
    held = json.loads((FOLDER / name).read_text())
    held = held["cases"] if isinstance(held, dict) else held
    return [pytest.param(case, id=case["name"]) for case in held]


def test_the_references_hold_39_cases(shared):
    assert [len(cases(name)) for name in ("tal_activitynet.json", "moment_retrieval.json")] == [25, 11]
    assert len(cases("tal_actionformer_label_ids.json")) == 3


@pytest.mark.parametrize("case", cases("tal_activitynet.json"))
def test_a_detection_case_scores_as_officially(case):
    manifest, detections = tal_manifest(case["ground_truth"]), tal_detections(case["predictions"])
    found = detection(detections, manifest, "activitynet")
    if "official_error" in case:  # a label without ground truth: KeyError there; here reported and left out
        problems = Problems()
        screen_detections(detections, manifest, problems)
        assert problems.counts == {UNKNOWN_LABEL: 1} and "zzz" in problems.places[UNKNOWN_LABEL][0]
        assert found["mAP@avg"] == 100.0
    else:
        assert [found[f"mAP@{t:.2f}"] for t in ACTIVITYNET_THRESHOLDS] == pytest.approx(
            [100 * value for value in case["official"]["mAP"]], abs=1e-7
        )
        assert same(found["mAP@avg"], 100 * case["official"]["average_mAP"])
        per_class = average_precision(detections, manifest.instances, ACTIVITYNET_THRESHOLDS)
        for name, values in per_class.items():
            assert values == pytest.approx(case["official"]["per_class"][name], abs=1e-9)


@pytest.mark.parametrize("case", cases("tal_activitynet.json"))
def test_a_detection_case_scores_as_by_opentad(case):
    found = detection(tal_detections(case["predictions"]), tal_manifest(case["ground_truth"]), "opentad")
    for threshold, value in zip(ACTIVITYNET_THRESHOLDS, case["opentad"]["mAP"], strict=True):
        assert same(found[f"mAP@{threshold:.2f}"], value if isinstance(value, str) else 100 * value)


@pytest.mark.parametrize("case", cases("tal_actionformer_label_ids.json"))
def test_a_label_of_no_ground_truth_never_counts_as_another_one(case, shared):
    stated = json.loads((FOLDER / "tal_actionformer_label_ids.json").read_text())["ground_truth"]["database"]
    truth = {name: [(str(i["label_id"]), *i["segment"]) for i in item["annotations"]] for name, item in stated.items()}
    found: dict[str, list] = {}
    for video_id, start, end, label, score in case["predictions"]:
        found.setdefault(video_id, []).append((str(label), start, end, score))
    metrics = detection(tal_detections(found), tal_manifest(truth), "thumos14")
    # The official 0.8333 of the colliding case is the defect that we leave out; by name there is no collision.
    assert metrics["mAP@avg"] == 100.0
    if "collides" not in case["name"]:
        assert metrics["mAP@avg"] == 100 * case["expected"]["average_mAP"]
        assert metrics["recall@1x@0.50"] == 100 * case["expected"]["recall"][2][0]
        assert metrics["recall@5x@0.50"] == 100 * case["expected"]["recall"][2][1]


@pytest.mark.parametrize("case", cases("moment_retrieval.json"))
def test_a_query_scores_as_by_each_code(case):
    manifest, predictions = query_manifest(case["gt_windows"]), [moments(case["pred_windows"])]
    if "unloc" in case:
        found = moment_retrieval(predictions, manifest, "default")
        for key, value in case["unloc"].items():
            rank, threshold = key.removeprefix("R@").split(",IOU=")
            assert same(found[f"R{rank}@{threshold}"], 100 * value), key
    found = moment_retrieval(predictions, manifest, "2d-tan")
    if "two_d_tan" in case:
        for key, value in case["two_d_tan"]["recall"].items():
            rank, threshold = key.removeprefix("R@").split(",IoU>")
            assert same(found[f"R{rank}@{threshold}"], 100 * value), key
        stated = case["two_d_tan"]["mIoU"]
        assert same(found["mIoU"], stated if isinstance(stated, str) else 100 * stated)
    elif "two_d_tan_error" in case:  # an empty list: a miss here
        assert set(found.values()) == {0.0}


@pytest.mark.parametrize("case", cases("moment_retrieval.json"))
def test_a_query_scores_as_by_moment_detr(case):
    found = moment_retrieval([moments(case["pred_windows"])], query_manifest(case["gt_windows"]), "moment_detr")
    if "moment_detr_R1_error" in case:  # an empty list: a miss here
        assert {found[f"MR-full-{kind}@{t}"] for kind in ("R1", "mAP") for t in QVHIGHLIGHTS_THRESHOLDS} == {0.0}
    else:
        for threshold in map(str, QVHIGHLIGHTS_THRESHOLDS):
            assert same(found[f"MR-full-R1@{threshold}"], case["moment_detr_R1"][threshold])
            assert same(found[f"MR-full-mAP@{threshold}"], case["moment_detr_mAP"][threshold])
        assert same(found["MR-full-mAP"], case["moment_detr_mAP"]["average"])


@pytest.mark.parametrize(("window", "duration"), [([8.0, 7.0], 6.25), ([20.9, 12.0], 30.38), ([31.0, 32.7], 30.96)])
def test_a_window_that_is_reversed_once_it_is_cut_counts_not_by_2d_tan_and_as_a_miss_elsewhere(window, duration):
    rows = [VideoRow(name, "test", duration) for name in "vw"]
    rows += [QueryRow("v", "test", "1", "a cat", [[0, 5]]), QueryRow("w", "test", "2", "a cat", [window])]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows)
    found = [moments([[0, 5, 1.0]]), moments([[*window, 1.0]], qid="2", video_id="w")]
    assert moment_retrieval(found, manifest, "2d-tan")["R1@0.5"] == 100.0
    assert moment_retrieval(found, manifest)["R1@0.5"] == 50.0


def test_2d_tan_keeps_only_one_window_of_length_0():
    predictions = [
        moments([[5, 5, 0.9], [5, 5, 0.8], [3, 3, 0.7], [30, 40, 0.6], [50, 60, 0.5], [70, 80, 0.4], [0, 10, 0.3]])
    ]
    found = moment_retrieval(predictions, query_manifest([[0, 10]]), "2d-tan")
    assert (found["R1@0.5"], found["R5@0.5"]) == (0.0, 100.0)


def test_a_reversed_detection_is_scored_as_it_is_and_correct_only_if_the_union_is_0_too():
    manifest = tal_manifest({"v": [("Run", 0, 10)]})
    assert detection(tal_detections({"v": [("Run", 10, 1, 0.9)]}), manifest)["mAP@avg"] == 0.0
    assert detection(tal_detections({"v": [("Run", 10, 0, 0.9)]}), manifest)["mAP@avg"] == 100.0  # officially 0/0
