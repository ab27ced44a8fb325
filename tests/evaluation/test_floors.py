"""Blind floors: the figures of the literature on the real annotations, and the rules on small examples."""

import numpy as np
import pytest

from tests.evaluation.small import tal_manifest
from unloc.annotations.converters import convert
from unloc.annotations.reading import listed_filter
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest, restricted
from unloc.evaluation.detection import detection
from unloc.evaluation.evaluator import evaluate
from unloc.evaluation.floors import best_boxes, detection_floors

# What a survey of this field measured, and ours: R1@0.5, R5@0.5, R1@0.7 and R5@0.7 fitted at 0.7.
MEASURED = {
    "charades_sta": ("charades-sta", "test", (30.6, 85.7, 16.9, 48.9), (30.65, 85.70, 16.94, 48.90)),
    "activitynet_captions": ("activitynet-captions", "val_2", (27.9, 78.3, 15.6, 49.4), (27.90, 78.34, 15.42, 49.19)),
}


@pytest.mark.parametrize("folder", ["charades_sta", pytest.param("activitynet_captions", marks=pytest.mark.slow)])
def test_five_constant_boxes_score_what_the_survey_measured(shared, folder):
    converter, split, survey, ours = MEASURED[folder]
    manifest = convert(converter, [shared / "annotations" / folder])
    floors = evaluate("mr", None, manifest, split, train_split="train", protocol="default")["floors"]
    plain, strict = floors["blind_constant"], floors["blind_constant_at_0.7"]
    found = [plain["R1@0.5"], plain["R5@0.5"], strict["R1@0.7"], strict["R5@0.7"]]
    assert found == pytest.approx(ours, abs=0.005)
    assert found == pytest.approx(survey, abs=0.25)  # its rounding; of the captions it left some sentences out


@pytest.mark.slow
def test_one_constant_box_scores_14_on_qvhighlights(shared):
    manifest = convert("qvhighlights", [shared / "annotations" / "qvhighlights"])
    floors = evaluate("mr", None, manifest, "val", train_split="train", protocol="moment_detr")["floors"]
    assert floors["blind_constant"]["MR-full-R1@0.5"] == pytest.approx(14.13, abs=0.005)  # survey: 14.1
    assert floors["blind_constant_at_0.7"]["MR-full-R1@0.7"] == pytest.approx(6.52, abs=0.005)  # survey: 6.5


@pytest.mark.slow
def test_true_labels_with_constant_boxes_score_47_on_activitynet(shared):
    folder = shared / "annotations" / "activitynet_1.3"
    manifest = convert("activitynet", [folder / "activity_net.v1-3.rebuilt.json"])
    found = evaluate("tal", None, manifest, "validation", train_split="training")["floors"]
    assert found["constant_true_label"]["mAP@0.50"] == pytest.approx(46.83, abs=0.005)
    assert found["whole_video_true_label"]["mAP@0.50"] == pytest.approx(34.72, abs=0.005)
    # The survey's 47.6 and 14.6: the 4,728 videos of BMN's list, and equal scores in an order left to chance.
    listed = restricted(manifest, listed_filter([], [folder / "video_info_new.csv"]))
    part = listed.select("validation")
    table = detection_floors(part, listed.select("training"))["constant_true_label"]
    shuffled = table.assign(score=table["score"] + np.random.default_rng(0).random(len(table)) * 1e-3)
    by_chance = detection(shuffled, part)
    assert by_chance["mAP@0.50"] == pytest.approx(47.6, abs=0.2)
    assert by_chance["mAP@avg"] == pytest.approx(14.6, abs=0.1)


@pytest.mark.slow
def test_background_everywhere_scores_59_on_coin(shared):
    manifest = convert("coin", [shared / "annotations" / "coin"])
    floors = evaluate("as", None, manifest, "testing", train_split="training")["floors"]
    found = [floors[f"all_background_{fps}_fps"]["frame_accuracy"] for fps in (1, 2, 10)]
    assert found == pytest.approx([58.87, 59.00, 58.94], abs=0.005)  # survey: 58.7 at 2 fps, of other videos


def test_each_box_reaches_the_most_segments_that_are_left():
    relative = np.array([[0.0, 0.2]] * 5 + [[0.5, 1.0]] * 3 + [[0.3, 0.35]])
    boxes = best_boxes(relative, 3)
    assert boxes.tolist() == [[0.0, 0.2], [0.5, 1.0], [0.3, 0.36]]
    assert best_boxes(np.zeros((0, 2)), 2).tolist() == [[0.0, 1.0]] * 2


def test_without_a_training_split_the_names_of_floors_state_the_split_they_are_fitted_on():
    rows = [VideoRow("v", "test", 100.0), QueryRow("v", "test", "0", "a cat", [[0, 50]])]
    manifest = build_manifest(name="small", tasks=("mr",), rows=rows)
    floors = evaluate("mr", None, manifest, "test")["floors"]
    assert set(floors) == {"blind_constant_fitted_on_test", "blind_constant_at_0.7_fitted_on_test", "whole_video"}
    assert floors["blind_constant_fitted_on_test"]["mIoU"] == 100.0
    assert floors["whole_video"]["mIoU"] == 50.0


def test_floors_with_true_label_in_their_name_use_it():
    manifest = tal_manifest({"v": [("Run", 0, 1000)], "w": [("Swim", 0, 1000)]})
    floors = evaluate("tal", None, manifest, "test")["floors"]
    assert floors["whole_video_true_label"]["mAP@avg"] == 100.0
    assert floors["blind_constant_fitted_on_test"]["mAP@avg"] < 100.0
