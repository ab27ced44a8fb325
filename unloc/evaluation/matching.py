"""Greedy matching of detections with ground truth at several IoU thresholds, vectorised.

Ties: of equal scores the later entry of the file goes first, as the official sort does with few entries; of ground
truths with equal IoU the later is tried first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd


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
    predicted_only: set[str]
    """Labels of detections without any ground truth."""

    def by_class(self) -> Iterator[slice]:
        """The detections of each class, class by class."""
        bounds = np.searchsorted(self.class_code, np.arange(len(self.classes) + 1))
        for first, after in pairwise(bounds):
            yield slice(int(first), int(after))

    @property
    def keys(self) -> np.ndarray:
        """(n,) one number per pair of class and video, for the detections."""
        return self.class_code * (len(self.videos) + 1) + self.video_code

    @property
    def truth_keys(self) -> np.ndarray:
        """(N,) the same for the ground truth."""
        return self.truth_class * (len(self.videos) + 1) + self.truth_video


def match_detections(detections: pd.DataFrame, instances: pd.DataFrame, thresholds: np.ndarray) -> Matches:
    """Detections matched with the instances of their class at every threshold; those of other classes are left out."""
    classes, videos = pd.Index(instances["label"].unique()), pd.Index(instances["video_id"].unique())
    label = classes.get_indexer(detections["label"])
    known = np.flatnonzero(label >= 0)
    scores = detections["score"].to_numpy(dtype=np.float64)[known]
    order = known[np.argsort(scores, kind="stable")[::-1]]
    order = order[np.argsort(label[order], kind="stable")]
    video = videos.get_indexer(detections["video_id"])[order]
    found = Matches(
        classes=list(classes),
        videos=list(videos),
        thresholds=np.asarray(thresholds),
        hits=np.zeros((len(order), len(thresholds)), dtype=bool),
        class_code=label[order],
        video_code=np.where(video >= 0, video, len(videos)),
        segments=detections[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)[order],
        truth_class=classes.get_indexer(instances["label"]),
        truth_video=videos.get_indexer(instances["video_id"]),
        truth=instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64),
        predicted_only=set(detections["label"].to_numpy()[label < 0]),
    )
    found.hits[:] = match(found.keys, found.segments, found.truth_keys, found.truth, found.thresholds)
    return found


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
    for group in np.split(several, np.flatnonzero(np.diff(key[several])) + 1) if len(several) else []:
        begin = first[group[0]]
        matched[group] = _match_group(segments[group], truth[begin : begin + count[group[0]]], thresholds)
    return matched


def _match_group(segments: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n, thresholds) greedy matching within one video and class with several ground truths."""
    matched = np.zeros((len(segments), len(thresholds)), dtype=bool)
    # Reversed: argmax takes the first of equals, the official code tries the later one first.
    ratio = overlap_over_union(segments[:, None], truth[None])[:, ::-1]
    free = np.ones((len(thresholds), len(truth)), dtype=bool)
    for row in np.flatnonzero(ratio.max(axis=1) >= thresholds.min()):
        open_ratio = np.where(free, ratio[row], -1.0)
        best = open_ratio.argmax(axis=1)
        reached = open_ratio[np.arange(len(thresholds)), best] >= thresholds
        matched[row] = reached
        free[reached, best[reached]] = False
    return matched


def interpolated_precision(hits: np.ndarray, num_truth: int) -> np.ndarray:
    """(thresholds,) interpolated average precision of hits (n, thresholds) by falling score."""
    if not len(hits) or not num_truth:
        return np.zeros(hits.shape[1])
    true = np.cumsum(hits, axis=0, dtype=np.float64)
    precision = true / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (precision * hits).sum(axis=0) / num_truth
