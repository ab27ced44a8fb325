"""Small manifests and predictions to score, and how numbers are compared."""

import json
import math

import numpy as np
import pytest

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.evaluation.detection import Matches, class_average_precision
from unloc.predictions.records import MomentPrediction, detections_table


def load(path):
    return json.loads(path.read_text())


def tal_manifest(truth, duration=1000.0, classes=None):
    """From {video: [(label, start, end)]}."""
    rows = [VideoRow(name, "test", duration) for name in truth]
    rows += [InstanceRow(name, "test", label, segment) for name, items in truth.items() for label, *segment in items]
    labels = dict.fromkeys(label for items in truth.values() for label, _, _ in items)
    return build_manifest(name="small", tasks=("tal",), rows=rows, classes=classes or labels)


def tal_detections(found):
    """From {video: [(label, start, end, score)]}."""
    return detections_table((name, *item) for name, items in found.items() for item in items)


def query_manifest(windows, duration=1000.0, **saliency):
    """One query of one video; its windows [[start, end], …]."""
    rows = [VideoRow("v", "test", duration), QueryRow("v", "test", "1", "a cat", windows, **saliency)]
    return build_manifest(name="small", tasks=("mr",), rows=rows)


def moments(windows, qid="1", video_id="v", query="a cat", saliency=None):
    """One prediction of windows [[start, end, score], …]."""
    rows = np.array(windows, dtype=float).reshape(-1, 3)
    return MomentPrediction(qid=qid, video_id=video_id, query=query, windows=rows, saliency=saliency)


def same(found, expected):
    """Equal to 1e-7 percent, that is 1e-9 as a fraction; NaN equals NaN."""
    if isinstance(expected, str) or math.isnan(expected):
        return math.isnan(found)
    return found == pytest.approx(expected, abs=1e-7)


def average_precision(detections, instances, thresholds):
    """{class: (thresholds,) average precision as a fraction}."""
    matches = Matches(detections, instances, thresholds)
    return dict(zip(matches.classes, class_average_precision(matches), strict=True))
