"""Coverage: which annotated videos and queries have a prediction, and the score without those that have none."""

import numpy as np
import pytest

from tests.evaluation.small import moments, tal_detections, tal_manifest
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.errors import InputError, MissingError
from unloc.evaluation.evaluator import evaluate, require_annotations, score
from unloc.predictions.records import FramePrediction

TRUTH = {"v": [("Run", 0, 10)], "w": [("Run", 0, 10)], "no action": []}


def test_a_video_without_detections_is_missing_even_without_ground_truth():
    manifest = tal_manifest(TRUTH)
    detections = tal_detections({"v": [("Run", 0, 10, 0.9)], "unknown": [("Run", 0, 1, 0.1)]})
    found = evaluate("tal", detections, manifest, "test")["coverage"]
    assert (found["videos_annotated"], found["videos_predicted"], found["missing"]) == (3, 1, ["w", "no action"])


def test_without_the_missing_videos_they_leave_the_denominator():
    manifest, detections = tal_manifest(TRUTH), tal_detections({"v": [("Run", 0, 10, 0.9)]})
    report = evaluate("tal", detections, manifest, "test")
    assert report["metrics"]["mAP@avg"] == 50.0 and report["coverage"]["metrics_without_missing"]["mAP@avg"] == 100.0


def query_manifest():
    rows = [VideoRow(name, "test", 20.0) for name in ("v", "w")]
    rows += [QueryRow("v", "test", "1", "a cat", [[0, 10]], [0], [[4, 4, 4]])]
    rows += [QueryRow("v", "test", "2", "a dog", [[0, 10]], [0], [[4, 4, 4]])]
    rows += [QueryRow("w", "test", "3", "a cat", [[0, 10]], [0], [[4, 4, 4]])]
    return build_manifest(name="m", tasks=("mr", "hd"), rows=rows)


def test_coverage_counts_queries_and_saliency_is_enough_for_highlights():
    manifest = query_manifest()
    predictions = [moments([[0, 10, 1.0]], qid="1"), moments([], qid="3", video_id="w", saliency=np.ones(10))]
    report = evaluate("mr", predictions, manifest, "test", protocol="default")
    found = report["coverage"]
    assert (found["queries_annotated"], found["queries_predicted"], found["missing"]) == (3, 1, ["w"])
    assert evaluate("hd", predictions, manifest, "test")["coverage"]["queries_predicted"] == 2
    assert report["metrics"]["R1@0.5"] == pytest.approx(100 / 3)
    assert report["coverage"]["metrics_without_missing"]["R1@0.5"] == 100.0


def test_frames_of_missing_videos_count_as_background_or_not_at_all():
    rows = [VideoRow(name, "test", 10.0) for name in ("v", "w")]
    manifest = build_manifest(name="m", tasks=("as",), rows=rows, classes=("a",))
    predictions = [FramePrediction(video_id="v", fps=1.0, labels=["a"] * 10)]
    report = evaluate("as", predictions, manifest, "test")
    assert report["metrics"]["frame_accuracy"] == 50.0
    assert report["coverage"]["metrics_without_missing"]["frame_accuracy"] == 0.0


def test_full_coverage_has_no_second_score():
    report = evaluate(
        "tal", tal_detections({"v": [("Run", 0, 10, 0.9)]}), tal_manifest({"v": [("Run", 0, 10)]}), "test"
    )
    assert report["coverage"]["missing"] == [] and "metrics_without_missing" not in report["coverage"]


def test_a_split_without_what_a_task_needs_is_refused():
    manifest = query_manifest()
    require_annotations("hd", manifest, "test")
    with pytest.raises(InputError, match="no labelled segments"):
        require_annotations("tal", manifest, "test")
    with pytest.raises(MissingError, match="it has: test"):
        evaluate("mr", [], manifest, "val")


@pytest.mark.parametrize("duration", [None, 0.0, float("inf")])
def test_a_video_of_unknown_length_is_refused_where_a_score_needs_it(duration):
    rows = [VideoRow("v", "test", duration), InstanceRow("v", "test", "a", [0, 4])]
    rows += [QueryRow("v", "test", "1", "a cat", [[0, 10]], [0, 3], [[4, 4, 4], [0, 0, 0]])]
    manifest = build_manifest(name="m", tasks=("as", "hd"), rows=rows, classes=("a",))
    frames = [FramePrediction(video_id="v", fps=1.0, labels=["a", "a", None, None, None])]
    answers = [moments([[0, 10, 1.0]], saliency=np.array([1.0, 0, 0, 0]))]
    for task, predictions, protocol in (("as", frames, None), ("hd", answers, None), ("mr", answers, "default")):
        with pytest.raises(InputError, match=r"no duration.*first: v\).*--cache"):
            score(task, predictions, manifest, protocol)
    assert score("mr", answers, manifest, "raw")["R1@0.5"] == 100.0  # needs none
    detections = tal_detections({"v": [("a", 0, 4, 0.9)]})
    assert score("tal", detections, manifest)["mAP@avg"] == 100.0
    with pytest.raises(InputError, match="unloc data check"):
        evaluate("tal", detections, manifest, "test")  # its floors do
