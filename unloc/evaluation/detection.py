"""Temporal action localization: average precision as each official scorer computes it, vectorised.

Procedure (ActivityNet's eval_detection): per class, predictions of all videos by falling score; each takes the
best-overlapping ground truth of its own video and class that is free and reaches the threshold; precision is made
monotone from the right and integrated at every change of recall (VOC 2011). Segments are not clamped. Ties: of equal
scores the later entry of the file goes first, as the official sort does with few entries; of ground truths with equal
IoU the later is tried first.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.evaluation.protocols import DetectionProtocol, protocol_for

SAME_SEGMENT_SECONDS = 1e-3  # OpenTAD and ActionFormer: ground truth this close is a repeat


def detection(detections: pd.DataFrame, manifest: Manifest, protocol: str = "activitynet") -> dict[str, float]:
    """mAP@t for each threshold and mAP@avg in percent, over the classes that occur in the (selected) manifest.

    Where the protocol has them also recall@kx@t, and mAP_present_classes if mAP counts absent classes as 0. Without any
    ground truth the figures are NaN: there is nothing to find. Raises InputError for an unknown protocol.
    """
    return detection_scores(detections, manifest, protocol_for("tal", protocol, manifest)).metrics()


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Detections, sorted by class and then by falling score, and whether each takes a ground truth."""

    classes: list[str]
    videos: list[str]
    """Videos with ground truth; detections in other videos have the code len(videos)."""
    thresholds: np.ndarray
    hits: np.ndarray
    """(n, thresholds) True where a detection takes a ground truth."""
    class_code: np.ndarray
    video_code: np.ndarray
    segments: np.ndarray
    """(n, 2) of the detections."""
    truth_class: np.ndarray
    truth_video: np.ndarray
    truth: np.ndarray
    """(N, 2) ground truth, in the order of the annotations."""
    keys: np.ndarray
    """(n,) one number per pair of class and video, for the detections."""
    truth_keys: np.ndarray
    """(N,) the same for the ground truth."""

    def by_class(self) -> list[slice]:
        """The detections of each class, class by class."""
        bounds = np.searchsorted(self.class_code, np.arange(len(self.classes) + 1)).tolist()
        return [slice(first, after) for first, after in pairwise(bounds)]


def match_detections(detections: pd.DataFrame, instances: pd.DataFrame, thresholds: np.ndarray) -> Matches:
    """Detections matched with the instances of their class at every threshold; those of other classes are left out."""
    classes, videos = pd.Index(instances["label"].unique()), pd.Index(instances["video_id"].unique())
    label = classes.get_indexer(detections["label"])
    known = np.flatnonzero(label >= 0)
    scores = detections["score"].to_numpy(dtype=np.float64)[known]
    order = known[np.argsort(scores, kind="stable")[::-1]]
    order = order[np.argsort(label[order], kind="stable")]
    video = videos.get_indexer(detections["video_id"])[order]
    video = np.where(video >= 0, video, len(videos))
    segments = detections[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)[order]
    truth = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    truth_class, truth_video = classes.get_indexer(instances["label"]), videos.get_indexer(instances["video_id"])
    keys, truth_keys = label[order] * (len(videos) + 1) + video, truth_class * (len(videos) + 1) + truth_video
    return Matches(
        classes=list(classes),
        videos=list(videos),
        thresholds=thresholds,
        hits=match(keys, segments, truth_keys, truth, thresholds),
        class_code=label[order],
        video_code=video,
        segments=segments,
        truth_class=truth_class,
        truth_video=truth_video,
        truth=truth,
        keys=keys,
        truth_keys=truth_keys,
    )


def overlap_over_union(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of paired segments (…, 2); 0/0 is infinite, because officially NaN passes every threshold."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (segments[..., 1] - segments[..., 0]) + (others[..., 1] - others[..., 0]) - overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = overlap / union
    return np.where(np.isnan(ratio), np.inf, ratio)


def match(
    key: np.ndarray, segments: np.ndarray, truth_key: np.ndarray, truth: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """(n, thresholds) True where a detection takes a ground truth of its key; earlier detections choose first."""
    matched = np.zeros((len(key), len(thresholds)), dtype=bool)
    order = np.argsort(truth_key, kind="stable")
    truth_key, truth = truth_key[order], truth[order]
    first = np.searchsorted(truth_key, key)
    count = np.searchsorted(truth_key, key, side="right") - first
    single = np.flatnonzero(count == 1)
    ratio = overlap_over_union(segments[single], truth[first[single]])
    for column, threshold in enumerate(thresholds):
        reaching = single[ratio >= threshold]
        _, earliest = np.unique(key[reaching], return_index=True)
        matched[reaching[earliest], column] = True
    several = np.flatnonzero(count > 1)
    several = several[np.argsort(key[several], kind="stable")]
    for group in np.split(several, np.flatnonzero(np.diff(key[several])) + 1) if len(several) else []:
        own = truth[first[group[0]] : first[group[0]] + count[group[0]]]
        # Reversed: argmax takes the first of equals, the official code tries the later one first.
        ratio = overlap_over_union(segments[group][:, None], own[None])[:, ::-1]
        free = np.ones((len(thresholds), len(own)), dtype=bool)
        for row in np.flatnonzero(ratio.max(axis=1) >= thresholds.min()):
            open_ratio = np.where(free, ratio[row], -1.0)
            best = open_ratio.argmax(axis=1)
            reached = open_ratio[np.arange(len(thresholds)), best] >= thresholds
            matched[group[row]] = reached
            free[reached, best[reached]] = False
    return matched


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
        return class_average_precision(self.matches, single_precision=self.rules.as_unloc)

    def metrics(self) -> dict[str, float]:
        """The metrics of `detection`."""
        metrics = self.mean_precision(self.precision)
        for multiple in self.rules.recall_multiples:
            found = found_at_multiple(self.matches, multiple)
            metrics |= mean_recall(found, self.matches, multiple, np.ones(len(self.matches.truth)))
        return metrics

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP@t and AP@avg of every class in percent."""
        names = [*(f"AP@{threshold:.2f}" for threshold in self.rules.thresholds), "AP@avg"]
        rows = ([*values, values[self.rules.averaged].mean()] for values in 100.0 * self.precision)
        return {
            label: dict(zip(names, map(float, row), strict=True))
            for label, row in zip(self.matches.classes, rows, strict=True)
        }

    def mean_precision(self, values: np.ndarray) -> dict[str, float]:
        """mAP@t and mAP@avg in percent from values (classes, thresholds) of the present classes; NaN without classes.

        If the protocol counts absent classes as 0, mAP_present_classes is added.
        """
        counts = {"mAP": len(values) + self.num_absent}
        if self.rules.as_unloc:
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
    if rules.as_unloc:  # one with predictions but no ground truth is NaN in UnLoc's scorer and skipped
        num_absent = len({*manifest.classes} - {*matches.classes, *detections["label"]})
    num_videos = max(manifest.videos["video_id"].nunique(), len(matches.videos))
    return DetectionScores(matches, rules, num_videos, num_absent)


def kept_truth(instances: pd.DataFrame, rules: DetectionProtocol) -> pd.DataFrame:
    """The instances that the protocol counts: without too short ones and repeats if it drops them."""
    segments = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    lengths = segments[:, 1] - segments[:, 0]
    shortest, keep = rules.shortest_seconds, np.ones(len(instances), dtype=bool)
    if shortest is not None:
        keep = lengths >= shortest if shortest else lengths > 0.0
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
    """(classes, thresholds) average precision of every class with ground truth, 0 for one without detections.

    `single_precision`: precision and recall are rounded to float32 as in UnLoc's scorer (differs by 1e-8).
    """
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    values = np.zeros((len(matches.classes), len(matches.thresholds)))
    kind = np.float32 if single_precision else np.float64
    for code, rows in enumerate(matches.by_class()):
        hits = matches.hits[rows]
        true = np.cumsum(hits, axis=0).astype(kind)
        precision = (true / np.arange(1, len(hits) + 1, dtype=kind)[:, None]).astype(np.float64)
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        if single_precision:
            recall = (true / np.float32(counts[code])).astype(np.float64)
            values[code] = (np.diff(recall, axis=0, prepend=0.0) * precision).sum(axis=0)
        else:
            values[code] = (precision * hits).sum(axis=0) / counts[code]
    return values


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
