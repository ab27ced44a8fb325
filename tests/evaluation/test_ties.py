"""Equal scores go by the stated rule."""

from tests.evaluation.small import moments, query_manifest, tal_detections, tal_manifest
from unloc.evaluation.detection import detection
from unloc.evaluation.protocols import PROTOCOLS
from unloc.evaluation.retrieval import moment_retrieval


def test_of_equal_detections_the_later_entry_goes_first():
    rows = [("Run", 0, 10, 0.5), ("Run", 50, 60, 0.5)]
    manifest = tal_manifest({"v": [("Run", 50, 60)]})
    assert detection(tal_detections({"v": rows}), manifest)["mAP@avg"] == 100.0
    assert detection(tal_detections({"v": rows[::-1]}), manifest)["mAP@avg"] == 50.0


def test_of_equal_windows_the_later_entry_goes_first():
    manifest = query_manifest([[0, 10]])
    assert moment_retrieval([moments([[0, 10, 0.5], [50, 60, 0.5]])], manifest)["R1@0.7"] == 0.0
    assert moment_retrieval([moments([[50, 60, 0.5], [0, 10, 0.5]])], manifest)["R1@0.7"] == 100.0


def test_by_moment_detr_the_earlier_of_equal_windows_goes_first():
    manifest = query_manifest([[0, 10]])
    assert moment_retrieval([moments([[0, 10, 0.5], [50, 60, 0.5]])], manifest, "moment_detr")["MR-full-mAP"] == 100.0
    assert moment_retrieval([moments([[50, 60, 0.5], [0, 10, 0.5]])], manifest, "moment_detr")["MR-full-mAP"] == 50.0


def test_every_protocol_states_its_rule():
    assert all(rules.tie_rule for protocols in PROTOCOLS.values() for rules in protocols.values())
