"""Temporal action localization: average precision as each official scorer computes it, vectorised.

Procedure (ActivityNet's eval_detection): per class, predictions of all videos by falling score; each takes the
best-overlapping ground truth of its own video and class that is free and reaches the threshold; precision is made
monotone from the right and integrated at every change of recall (VOC 2011). Segments are taken as they are.
Ties are broken as in `matching`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.matching import Matches, interpolated_precision, match_detections, overlap_over_union

ACTIVITYNET_THRESHOLDS = np.linspace(0.5, 0.95, 10)
THUMOS_THRESHOLDS = np.linspace(0.3, 0.7, 5)
UNLOC_THRESHOLDS = np.linspace(0.05, 0.95, 19)
SAME_SEGMENT_SECONDS = 1e-3  # OpenTAD and ActionFormer: ground truth this close is a repeat


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """What one official scorer does differently from the others."""

    name: str
    thresholds: np.ndarray
    averaged: tuple[int, ...] | None = None
    """Which of the thresholds make up mAP@avg; None: all."""
    shortest_seconds: float | None = None
    """Ground truth must be longer than 0 (0.0) or at least so long (ActionFormer, 1 ms); None keeps all of it."""
    drops_repeats: bool = False
    """Whether ground truth of one label within 1 ms of an earlier one is dropped."""
    recall_multiples: tuple[int, ...] = ()
    """k of recall@kx."""
    single_precision: bool = False
    """Precision and recall rounded to float32 before they are integrated."""
    divides_by_all_classes: bool = False
    """Whether classes of the manifest without ground truth and predictions count as 0 in the mean."""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        DetectionProtocol(name="activitynet", thresholds=ACTIVITYNET_THRESHOLDS),
        DetectionProtocol(
            name="thumos14",
            thresholds=THUMOS_THRESHOLDS,
            shortest_seconds=1e-3,
            drops_repeats=True,
            recall_multiples=(1, 5),
        ),
        DetectionProtocol(
            name="opentad",
            thresholds=ACTIVITYNET_THRESHOLDS,
            shortest_seconds=0.0,
            drops_repeats=True,
            recall_multiples=(1, 5),
        ),
        DetectionProtocol(
            name="opentad-thumos14",
            thresholds=THUMOS_THRESHOLDS,
            shortest_seconds=0.0,
            drops_repeats=True,
            recall_multiples=(1, 5),
        ),
        DetectionProtocol(
            name="unloc",
            thresholds=UNLOC_THRESHOLDS,
            averaged=tuple(range(9, 19)),
            single_precision=True,
            divides_by_all_classes=True,
        ),
        DetectionProtocol(
            name="unloc-thumos14",
            thresholds=UNLOC_THRESHOLDS,
            averaged=tuple(range(5, 14, 2)),
            single_precision=True,
            divides_by_all_classes=True,
        ),
    )
}


def protocol_named(name: str) -> DetectionProtocol:
    """The protocol of that name. Raises InputError naming those there are."""
    if name not in PROTOCOLS:
        raise InputError(f"--protocol: got {name!r} for tal, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of every class at every threshold, as fractions."""

    classes: list[str]
    thresholds: np.ndarray
    values: np.ndarray
    """(classes, thresholds)."""


def detection(detections: pd.DataFrame, manifest: Manifest, protocol: str = "activitynet") -> dict[str, float]:
    """mAP@t for each threshold and mAP@avg in percent, over the classes that occur in the (selected) manifest.

    Beside them, where the protocol has them: recall@kx@t, and mAP_present_classes where mAP counts absent classes as 0.
    Without any ground truth the figures are NaN: there is nothing to find. Raises InputError for an unknown protocol.
    """
    return detection_by_class(detections, manifest, protocol)[0]


def detection_by_class(
    detections: pd.DataFrame, manifest: Manifest, protocol: str = "activitynet"
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(the metrics of `detection`, AP@t and AP@avg of every class in percent)."""
    rules = protocol_named(protocol)
    matches = match_detections(detections, kept_truth(manifest.instances, rules), rules.thresholds)
    precision = class_precision(matches, rules)
    metrics = mean_precision(precision.values, rules, num_absent_classes(matches, manifest, rules))
    for multiple in rules.recall_multiples:
        found = found_at_multiple(matches, multiple)
        metrics |= mean_recall(found, matches, multiple, np.ones(len(matches.truth)))
    names = [f"AP@{threshold:.2f}" for threshold in rules.thresholds]
    averaged = slice(None) if rules.averaged is None else list(rules.averaged)
    by_class = {
        label: dict(zip(names, values.tolist(), strict=True)) | {"AP@avg": float(values[averaged].mean())}
        for label, values in zip(precision.classes, 100.0 * precision.values, strict=True)
    }
    return metrics, by_class


def num_absent_classes(matches: Matches, manifest: Manifest, rules: DetectionProtocol) -> int:
    """How many classes without ground truth the mean counts as 0.

    For UnLoc those without predictions too; one with predictions but no ground truth is NaN there and skipped.
    """
    if not rules.divides_by_all_classes:
        return 0
    return len(set(manifest.classes) - set(matches.classes) - matches.predicted_only)


def mean_precision(values: np.ndarray, rules: DetectionProtocol, absent_classes: int) -> dict[str, float]:
    """mAP@t and mAP@avg in percent from values (classes, thresholds) of the present classes; NaN without classes.

    Where the protocol counts absent classes as 0, mAP_present_classes stands beside them.
    """
    counts = {"mAP": len(values) + absent_classes}
    if rules.divides_by_all_classes:
        counts["mAP_present_classes"] = len(values)
    metrics = {}
    for name, count in counts.items():
        mean = 100.0 * values.sum(axis=0) / count if count else np.full(len(rules.thresholds), np.nan)
        metrics |= {f"{name}@{threshold:.2f}": float(at) for threshold, at in zip(rules.thresholds, mean, strict=True)}
        metrics[f"{name}@avg"] = float((mean if rules.averaged is None else mean[list(rules.averaged)]).mean())
    return metrics


def average_precision(detections: pd.DataFrame, instances: pd.DataFrame, thresholds: np.ndarray) -> AveragePrecision:
    """Average precision per class of the instances; detections of other classes are not counted here."""
    rules = DetectionProtocol(name="", thresholds=thresholds)
    return class_precision(match_detections(detections, instances, thresholds), rules)


def kept_truth(instances: pd.DataFrame, rules: DetectionProtocol) -> pd.DataFrame:
    """The instances that the protocol counts: too short ones and repeats dropped where it drops them."""
    lengths = (instances["end_seconds"] - instances["start_seconds"]).to_numpy(dtype=np.float64)
    keep = np.ones(len(instances), dtype=bool)
    if rules.shortest_seconds is not None:
        keep = lengths >= rules.shortest_seconds if rules.shortest_seconds else lengths > 0.0
    if rules.drops_repeats:
        keep = keep & ~_repeats(instances, keep)
    return instances[keep]


def _repeats(instances: pd.DataFrame, candidates: np.ndarray) -> np.ndarray:
    """True where an earlier kept instance of the same video and label is the same segment within 1 ms."""
    repeated = np.zeros(len(instances), dtype=bool)
    segments = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    groups = instances.assign(row=np.arange(len(instances)))[candidates].groupby(["video_id", "label"], sort=False)
    for rows in groups["row"].agg(list):
        kept: list[int] = []
        for row in rows:
            repeated[row] = any((abs(segments[row] - segments[one]) <= SAME_SEGMENT_SECONDS).all() for one in kept)
            if not repeated[row]:
                kept.append(row)
    return repeated


def class_precision(matches: Matches, rules: DetectionProtocol) -> AveragePrecision:
    """Average precision of every class with ground truth; 0 for one without detections."""
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    values = np.zeros((len(matches.classes), len(matches.thresholds)))
    integrate = float32_precision if rules.single_precision else interpolated_precision
    for code, rows in enumerate(matches.by_class()):
        values[code] = integrate(matches.hits[rows], int(counts[code]))
    return AveragePrecision(matches.classes, matches.thresholds, values)


def float32_precision(hits: np.ndarray, num_truth: int) -> np.ndarray:
    """The same with precision and recall rounded to float32, as UnLoc's scorer rounds them (differences near 1e-8)."""
    if not len(hits) or not num_truth:
        return np.zeros(hits.shape[1])
    true = np.cumsum(hits, axis=0).astype(np.float32)
    recall = (true / np.float32(num_truth)).astype(np.float64)
    precision = (true / np.arange(1, len(hits) + 1, dtype=np.float32)[:, None]).astype(np.float64)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (np.diff(recall, axis=0, prepend=0.0) * precision).sum(axis=0)


def found_at_multiple(matches: Matches, multiple: int) -> np.ndarray:
    """(N, thresholds) True for ground truth that any of the k·n best detections of its video and class reaches.

    n is the number of ground truths there; one detection may find several (ActionFormer, OpenTAD).
    """
    order, truth_order = np.argsort(matches.keys, kind="stable"), np.argsort(matches.truth_keys, kind="stable")
    sorted_keys, best = matches.keys[order], np.full(len(matches.truth), -1.0)
    unique, first, count = np.unique(matches.truth_keys[truth_order], return_index=True, return_counts=True)
    starts, ends = np.searchsorted(sorted_keys, unique), np.searchsorted(sorted_keys, unique, side="right")
    for begin, num_truth, start, end in zip(first, count, starts, ends, strict=True):
        rows = truth_order[begin : begin + num_truth]
        chosen = order[start : min(end, start + multiple * num_truth)]
        if len(chosen):
            best[rows] = overlap_over_union(matches.segments[chosen][:, None], matches.truth[rows][None]).max(axis=0)
    return best[:, None] >= matches.thresholds


def mean_recall(found: np.ndarray, matches: Matches, multiple: int, weights: np.ndarray) -> dict[str, float]:
    """recall@kx@t in percent: the mean over classes of the share found, each ground truth counted `weights` times."""
    counts = np.bincount(matches.truth_class, weights, minlength=len(matches.classes))
    metrics = {}
    for threshold, column in zip(matches.thresholds, found.T, strict=True):
        share = np.bincount(matches.truth_class, weights * column, minlength=len(counts))[counts > 0]
        share = share / counts[counts > 0]
        metrics[f"recall@{multiple}x@{threshold:.2f}"] = 100.0 * float(share.mean()) if len(share) else np.nan
    return metrics
