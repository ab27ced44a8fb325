"""Temporal action localization: average precision as each official scorer computes it, vectorised.

Procedure (ActivityNet's eval_detection): per class, predictions of all videos by falling score; each takes the
best-overlapping ground truth of its own video and class that is free and reaches the threshold; precision is made
monotone from the right and integrated at every change of recall (VOC 2011). Segments are not clamped. Ties as in
`matching`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.evaluation.matching import Matches, interpolated_precision, match_detections, overlap_over_union
from unloc.evaluation.protocols import DetectionProtocol, protocol_for

SAME_SEGMENT_SECONDS = 1e-3  # OpenTAD and ActionFormer: ground truth this close is a repeat


def detection(detections: pd.DataFrame, manifest: Manifest, protocol: str = "activitynet") -> dict[str, float]:
    """mAP@t for each threshold and mAP@avg in percent, over the classes that occur in the (selected) manifest.

    Where the protocol has them also recall@kx@t, and mAP_present_classes if mAP counts absent classes as 0. Without any
    ground truth the figures are NaN: there is nothing to find. Raises InputError for an unknown protocol.
    """
    return detection_scores(detections, manifest, protocol_for("tal", protocol, manifest)).metrics()


@dataclass(frozen=True)
class DetectionScores:
    """Detections of a split, matched with its ground truth by one protocol."""

    matches: Matches
    rules: DetectionProtocol
    num_videos: int
    num_absent: int
    """Classes without ground truth that the mean counts as 0."""

    @cached_property
    def precision(self) -> np.ndarray:
        """(classes, thresholds) average precision of every class with ground truth, as a fraction."""
        return class_average_precision(self.matches, single_precision=self.rules.single_precision)

    def metrics(self) -> dict[str, float]:
        """The metrics of `detection`."""
        metrics = self.mean_precision(self.precision)
        for multiple in self.rules.recall_multiples:
            found = found_at_multiple(self.matches, multiple)
            metrics |= mean_recall(found, self.matches, multiple, np.ones(len(self.matches.truth)))
        return metrics

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP@t and AP@avg of every class in percent."""
        names = [f"AP@{threshold:.2f}" for threshold in self.rules.thresholds]
        return {
            label: dict(zip(names, values.tolist(), strict=True))
            | {"AP@avg": float(values[self.rules.averaged].mean())}
            for label, values in zip(self.matches.classes, 100.0 * self.precision, strict=True)
        }

    def mean_precision(self, values: np.ndarray) -> dict[str, float]:
        """mAP@t and mAP@avg in percent from values (classes, thresholds) of the present classes; NaN without classes.

        If the protocol counts absent classes as 0, mAP_present_classes is added.
        """
        counts = {"mAP": len(values) + self.num_absent}
        if self.rules.divides_by_all_classes:
            counts["mAP_present_classes"] = len(values)
        metrics, thresholds = {}, self.rules.thresholds
        for name, count in counts.items():
            mean = 100.0 * values.sum(axis=0) / count if count else np.full(len(thresholds), np.nan)
            metrics |= {f"{name}@{threshold:.2f}": float(at) for threshold, at in zip(thresholds, mean, strict=True)}
            metrics[f"{name}@avg"] = float(mean[self.rules.averaged].mean())
        return metrics


def detection_scores(detections: pd.DataFrame, manifest: Manifest, rules: DetectionProtocol) -> DetectionScores:
    """Detections matched with the ground truth of the (selected) manifest."""
    matches = match_detections(detections, kept_truth(manifest.instances, rules), rules.thresholds)
    num_absent = 0
    if rules.divides_by_all_classes:  # one with predictions but no ground truth is NaN in UnLoc's scorer and skipped
        num_absent = len(set(manifest.classes) - set(matches.classes) - matches.predicted_only)
    num_videos = max(manifest.videos["video_id"].nunique(), len(matches.videos))
    return DetectionScores(matches, rules, num_videos, num_absent)


def kept_truth(instances: pd.DataFrame, rules: DetectionProtocol) -> pd.DataFrame:
    """The instances that the protocol counts: without too short ones and repeats if it drops them."""
    segments = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    lengths = segments[:, 1] - segments[:, 0]
    keep = np.ones(len(instances), dtype=bool)
    if rules.shortest_seconds is not None:
        keep = lengths >= rules.shortest_seconds if rules.shortest_seconds else lengths > 0.0
    if rules.drops_repeats:
        rows = instances.assign(row=np.arange(len(instances)))[keep].groupby(["video_id", "label"], sort=False)["row"]
        for group in rows.agg(list):
            kept: list[int] = []
            for row in group:
                if any((abs(segments[row] - segments[one]) <= SAME_SEGMENT_SECONDS).all() for one in kept):
                    keep[row] = False
                else:
                    kept.append(row)
    return instances[keep]


def class_average_precision(matches: Matches, *, single_precision: bool = False) -> np.ndarray:
    """(classes, thresholds) average precision of every class with ground truth, 0 for one without detections."""
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    values = np.zeros((len(matches.classes), len(matches.thresholds)))
    integrate = _float32_precision if single_precision else interpolated_precision
    for code, rows in enumerate(matches.by_class()):
        values[code] = integrate(matches.hits[rows], int(counts[code]))
    return values


def _float32_precision(hits: np.ndarray, num_truth: int) -> np.ndarray:
    """As `interpolated_precision`, precision and recall rounded to float32 as in UnLoc's scorer (differs by 1e-8)."""
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
