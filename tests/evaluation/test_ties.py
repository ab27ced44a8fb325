"""Equal scores: the stated rule, and how far another order could move a figure."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.small import moments, query_manifest, tal_detections, tal_manifest
from unloc.evaluation.detection import detection
from unloc.evaluation.evaluator import evaluate
from unloc.evaluation.protocols import PROTOCOLS
from unloc.evaluation.retrieval import moment_retrieval, tie_spans


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


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(1, 2)), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_the_span_is_that_of_all_orders_of_equal_scores(rows):
    windows = np.array([[start, start + length, score] for start, length, score in rows], dtype=float)
    manifest = query_manifest([[2, 8], [10, 14]])
    ours = moment_retrieval([moments(windows)], manifest)
    spans = tie_spans([moments(windows)], manifest, PROTOCOLS["mr"]["default"])
    orders = []
    for order in permutations(range(len(windows))):
        by_score = windows[list(order)][np.argsort(-windows[list(order), 2], kind="stable")]
        different = np.column_stack([by_score[:, :2], np.linspace(1.0, 0.5, len(by_score))])
        orders.append(moment_retrieval([moments(different)], manifest))
    for name, value in ours.items():
        values = [found[name] for found in orders]
        assert spans.get(name, [value, value]) == pytest.approx([min(values), max(values)])


def test_the_report_has_tie_spans_only_if_scores_tie():
    manifest = query_manifest([[0, 10]])
    tied = [moments([[0, 10, 0.5], [50, 60, 0.5]])]
    report = evaluate("mr", tied, manifest, "test")
    assert report["tie_spans"]["R1@0.5"] == [0.0, 100.0] and "R5@0.5" not in report["tie_spans"]
    assert evaluate("mr", [moments([[0, 10, 0.5], [50, 60, 0.4]])], manifest, "test")["tie_spans"] == {}
    for protocol in set(PROTOCOLS["mr"]) - {"default", "raw"}:
        assert evaluate("mr", tied, manifest, "test", protocol=protocol)["tie_spans"] == {}
