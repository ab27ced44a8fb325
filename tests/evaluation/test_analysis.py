"""Error analysis: each kind of mistake is called by its name, counted once, and drawn."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.evaluation.small import moments, query_manifest, tal_detections, tal_manifest
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.evaluation.analysis import KINDS, analyse, write_plots
from unloc.evaluation.detection import detection
from unloc.predictions.records import FramePrediction

TRUTH = {"v": [("Run", 0, 10), ("Jump", 100, 110)], "w": [("Run", 0, 400)]}
FOUND = {
    "v": [
        ("Run", 0, 10, 0.9),  # true
        ("Run", 1, 10, 0.8),  # duplicate
        ("Run", 100, 110, 0.7),  # wrong label
        ("Run", 0, 25, 0.6),  # poor boundary: IoU 0.4
        ("Run", 100, 130, 0.5),  # confused: IoU 1/3 with Jump
        ("Run", 500, 510, 0.4),  # background
    ],
    "elsewhere": [("Run", 0, 10, 0.3)],  # background: no such video
}


def test_every_kind_of_false_positive_is_classified():
    found = analyse("tal", tal_detections(FOUND), tal_manifest(TRUTH))
    assert found["counts"] == dict(zip(KINDS, (1, 1, 1, 1, 1, 2), strict=True))
    assert sum(sum(row.values()) for row in found["counts_by_rank"]) == 7
    assert found["counts_by_rank"][0] == dict(zip(KINDS, (1, 1, 0, 0, 0, 0), strict=True))  # Run has two segments


def test_a_gain_is_what_the_score_rises_by_without_the_kind():
    truth = {"v": [("Run", 0, 10)]}
    rows = [("Run", 500, 510, 0.9), ("Run", 0, 10, 0.8)]
    gains = analyse("tal", tal_detections({"v": rows}), tal_manifest(truth))["gain_without"]
    assert gains["background"] == pytest.approx(50.0) and sum(gains.values()) == pytest.approx(50.0)
    assert detection(tal_detections({"v": rows}), tal_manifest(truth))["mAP@0.50"] == 50.0


def test_misses_are_counted_by_length_position_and_number():
    found = analyse("tal", tal_detections(FOUND), tal_manifest(TRUTH))["recall"]
    lengths = {row["from"]: (row["segments"], row["missed"]) for row in found["length_seconds"]}
    assert lengths[10.0] == (2, 1) and lengths[120.0] == (1, 1) and lengths[0.0] == (0, 0)
    assert [row["segments"] for row in found["share_of_video"]] == [2, 0, 0, 1, 0, 0]
    assert [row["segments"] for row in found["position_of_middle"]] == [2, 1, 0, 0, 0]
    assert found["instances_in_video"][0]["segments"] == 3
    for rows in found.values():
        assert sum(row["segments"] for row in rows) == 3 and sum(row["missed"] for row in rows) == 2


def test_another_querys_moment_is_a_wrong_label_in_moment_retrieval():
    rows = [VideoRow("v", "test", 100.0)]
    rows += [QueryRow("v", "test", str(n), f"query {n}", [[20 * n, 20 * n + 10]]) for n in range(2)]
    manifest = build_manifest(name="small", tasks=("mr",), rows=rows)
    predictions = [
        moments([[0, 10, 0.9]], qid="0", query="query 0"),
        moments([[0, 10, 0.9], [20, 30, 0.1]], qid="1", query="query 1"),
    ]
    found = analyse("mr", predictions, manifest)
    assert found["counts"] == dict(zip(KINDS, (2, 0, 1, 0, 0, 0), strict=True))
    assert [row["recall_at_1x"] for row in found["recall"]["length_seconds"] if row["segments"]] == [50.0]


def test_runs_of_labels_are_the_segments_of_action_segmentation():
    rows = [VideoRow("v", "test", 10.0), InstanceRow("v", "test", "a", [0, 5]), InstanceRow("v", "test", "b", [5, 10])]
    manifest = build_manifest(name="small", tasks=("as",), rows=rows, classes=("a", "b"))
    labels = ["a"] * 10 + [None] * 2 + ["a"] * 8
    found = analyse("as", [FramePrediction(video_id="v", fps=2.0, labels=labels)], manifest)
    assert found["counts"]["true"] == 1 and found["counts"]["wrong label"] == 1


@pytest.mark.parametrize("truth", [TRUTH, {"v": []}])
def test_nothing_predicted_is_analysed_without_a_crash_and_drawn(truth, tmp_path):
    found = analyse("tal", tal_detections({}), tal_manifest(truth, classes=("Run", "Jump")))
    assert sum(found["counts"].values()) == 0 and set(found["gain_without"].values()) == {0.0}
    assert analyse("mr", [], query_manifest([[0, 10]]))["recall"]["length_seconds"][2]["missed"] == 1
    assert len(write_plots(found, tmp_path)) == 3


def test_plots_are_svg_with_text_and_the_same_every_time(tmp_path):
    found = analyse("tal", tal_detections(FOUND), tal_manifest(TRUTH))
    for path, again in zip(write_plots(found, tmp_path / "a"), write_plots(found, tmp_path / "b"), strict=True):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert path.read_bytes() == again.read_bytes()
    words = (tmp_path / "a" / "false_positives.svg").read_text()
    assert all(kind in words for kind in KINDS)
    json.dumps(found)
    assert np.isfinite(list(found["gain_without"].values())).all()
