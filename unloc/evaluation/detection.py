"""Temporal action localization: ActivityNet's official average precision, vectorised.

Procedure (official toolkit, eval_detection): per class, predictions of all videos by falling score; each takes the
best-overlapping ground truth of its own video and class that is free and reaches the threshold; precision is made
monotone from the right and integrated at every change of recall (VOC 2011). Segments are taken as they are.
Tie rule: equal scores keep the order of the file; of equally overlapping ground truths the later is tried first.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from unloc.data.schema import Manifest

ACTIVITYNET_THRESHOLDS = np.linspace(0.5, 0.95, 10)
THUMOS_THRESHOLDS = np.linspace(0.3, 0.7, 5)


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of every class at every threshold, as fractions."""

    classes: list[str]
    thresholds: np.ndarray
    values: np.ndarray
    """(classes, thresholds)."""


def detection(
    detections: pd.DataFrame, manifest: Manifest, thresholds: np.ndarray = ACTIVITYNET_THRESHOLDS
) -> dict[str, float]:
    """mAP@t for each threshold and mAP@avg in percent, over the classes that occur in the (selected) manifest."""
    result = average_precision(detections, manifest.instances, thresholds)
    mean = 100.0 * result.values.mean(axis=0) if result.classes else np.zeros(len(thresholds))
    metrics = {f"mAP@{threshold:.2f}": float(value) for threshold, value in zip(thresholds, mean, strict=True)}
    return metrics | {"mAP@avg": float(mean.mean())}


def average_precision(detections: pd.DataFrame, instances: pd.DataFrame, thresholds: np.ndarray) -> AveragePrecision:
    """Average precision per class of the instances; detections of other classes are not counted here."""
    classes = list(dict.fromkeys(instances["label"]))
    class_code = {name: code for code, name in enumerate(classes)}
    known = detections[detections["label"].isin(classes)]
    known = known.iloc[np.argsort(-known["score"].to_numpy(dtype=np.float64), kind="stable")]
    video_code = {
        name: code for code, name in enumerate(pd.unique(pd.concat([instances["video_id"], known["video_id"]])))
    }
    truth_key, truth = _keyed(instances, class_code, video_code)
    key, segments = _keyed(known, class_code, video_code)
    matched = match(key, segments, truth_key, truth, thresholds)
    labels = key // max(len(video_code), 1)
    counts = np.bincount(truth_key // max(len(video_code), 1), minlength=len(classes))
    values = np.zeros((len(classes), len(thresholds)))
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1))
    for code in range(len(classes)):
        hits = matched[order[bounds[code] : bounds[code + 1]]]
        values[code] = interpolated_precision(hits, int(counts[code]))
    return AveragePrecision(classes, np.asarray(thresholds), values)


def _keyed(
    table: pd.DataFrame, class_code: dict[str, int], video_code: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(key of class and video, segments (n, 2)) of the rows."""
    key = table["label"].map(class_code).to_numpy(dtype=np.int64) * len(video_code)
    key = key + table["video_id"].map(video_code).to_numpy(dtype=np.int64)
    return key, table[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)


def overlap_over_union(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of paired segments (…, 2); 0/0 counts as a perfect overlap, because officially NaN passes every threshold."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (segments[..., 1] - segments[..., 0]) + (others[..., 1] - others[..., 0]) - overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = overlap / union
    return np.where(np.isnan(ratio), np.inf, ratio)


def match(
    key: np.ndarray, segments: np.ndarray, truth_key: np.ndarray, truth: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """(n, thresholds) True where a detection (in falling score) takes a ground truth of its key."""
    matched = np.zeros((len(key), len(thresholds)), dtype=bool)
    order = np.argsort(truth_key, kind="stable")
    truth_key, truth = truth_key[order], truth[order]
    first = np.searchsorted(truth_key, key, side="left")
    count = np.searchsorted(truth_key, key, side="right") - first
    single = np.flatnonzero(count == 1)
    ratio = overlap_over_union(segments[single], truth[first[single]])
    for column, threshold in enumerate(thresholds):
        reaching = single[ratio >= threshold]
        _, earliest = np.unique(key[reaching], return_index=True)
        matched[reaching[earliest], column] = True
    several = np.flatnonzero(count > 1)
    several = several[np.argsort(key[several], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(key[several]) > 0]) if len(several) else []
    for group in np.split(several, starts[1:]) if len(several) else []:
        begin = first[group[0]]
        matched[group] = _match_group(segments[group], truth[begin : begin + count[group[0]]], thresholds)
    return matched


def _match_group(segments: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Greedy matching within one video and class that has several ground truths."""
    matched = np.zeros((len(segments), len(thresholds)), dtype=bool)
    ratio = overlap_over_union(segments[:, None], truth[None])
    preference = np.argsort(ratio, axis=1, kind="stable")[:, ::-1]
    free = np.ones((len(thresholds), len(truth)), dtype=bool)
    for row in np.flatnonzero(ratio.max(axis=1) >= thresholds.min()):
        for column in np.flatnonzero(ratio[row].max() >= thresholds):
            for index in preference[row]:
                if ratio[row, index] < thresholds[column]:
                    break
                if free[column, index]:
                    free[column, index] = False
                    matched[row, column] = True
                    break
    return matched


def interpolated_precision(hits: np.ndarray, num_truth: int) -> np.ndarray:
    """(thresholds,) interpolated average precision of hits (n, thresholds) in falling score."""
    if not len(hits) or not num_truth:
        return np.zeros(hits.shape[1])
    true = np.cumsum(hits, axis=0, dtype=np.float64)
    precision = true / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (precision * hits).sum(axis=0) / num_truth
