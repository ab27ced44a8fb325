"""Temporal action localization: average precision as each official scorer computes it, vectorised.

As ActivityNet's eval_detection: per class, predictions of all videos by falling score; each takes the best-overlapping
ground truth of its own video and class that is free and reaches the threshold; precision is made monotone from the
right and integrated at every change of recall (VOC 2011). Segments are not clamped. Ties: of equal scores the later
entry of the file goes first, as the official sort does with few entries; of ground truths with equal IoU the later.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.evaluation.protocols import DetectionProtocol, protocol_for


def detection(detections: pd.DataFrame, manifest: Manifest, protocol: str = "activitynet") -> dict[str, float]:
    """mAP@t for each threshold and mAP@avg in percent, over the classes that occur in the (selected) manifest.

    Where the protocol has them also recall@kx@t, and mAP_present_classes if mAP counts absent classes as 0. Without any
    ground truth the figures are NaN: there is nothing to find. Raises InputError for an unknown protocol.
    """
    return DetectionScores(detections, manifest, protocol_for("tal", protocol, manifest)).metrics()


class Matches:
    """Detections of classes with ground truth, by class and then by falling score, and whether each takes one."""

    def __init__(self, detections: pd.DataFrame, instances: pd.DataFrame, thresholds: np.ndarray) -> None:
        # The ground truth in the order of the annotations: (N,) codes and segments (N, 2).
        self.truth_class, classes = pd.factorize(instances["label"])
        self.truth_video, videos = pd.factorize(instances["video_id"])
        self.truth = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
        self.classes, self.videos, self.thresholds = list(classes), list(videos), thresholds
        self.truth_keys = self.truth_class * (len(videos) + 1) + self.truth_video  # one number per class and video
        # The same of the (n,) detections; those in videos without ground truth have the video code len(videos).
        label = classes.get_indexer(detections["label"])
        known = np.flatnonzero(label >= 0)
        scores = detections["score"].to_numpy(dtype=np.float64)[known]
        order = known[np.argsort(scores, kind="stable")[::-1]]
        order = order[np.argsort(label[order], kind="stable")]
        video = videos.get_indexer(detections["video_id"])[order]
        self.segments = detections[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)[order]
        self.class_code, self.video_code = label[order], np.where(video >= 0, video, len(videos))
        self.keys = self.class_code * (len(videos) + 1) + self.video_code
        self.starts = np.searchsorted(self.class_code, np.arange(len(classes)))  # first detection of each class
        self.hits = match(self.keys, self.segments, self.truth_keys, self.truth, thresholds)  # (n, thresholds)


def overlap_over_union(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of paired segments (…, 2); 0/0 is infinite, because officially NaN passes every threshold."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (segments[..., 1] - segments[..., 0]) + (others[..., 1] - others[..., 0]) - overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = overlap / union
    return np.where(np.isnan(ratio), np.inf, ratio)


def hull_ratio(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap over the hull: the union of 2D-TAN and of QVHighlights' R1; 0/0 is NaN, which reaches no threshold."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    hull = np.maximum(segments[..., 1], others[..., 1]) - np.minimum(segments[..., 0], others[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(overlap, 0.0) / hull


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


class DetectionScores:
    """Detections of a split, matched with the ground truth of the (selected) manifest by one protocol."""

    def __init__(self, detections: pd.DataFrame, manifest: Manifest, rules: DetectionProtocol) -> None:
        self.rules, self.num_absent = rules, 0
        self.matches = matches = Matches(detections, kept_truth(manifest.instances, rules), rules.thresholds)
        self.num_videos = max(manifest.videos["video_id"].nunique(), len(matches.videos)) if matches.videos else 0
        if rules.as_unloc:  # absent classes count as 0; one with predictions is NaN in UnLoc's scorer and skipped
            self.num_absent = len({*manifest.classes} - {*matches.classes, *detections["label"]})
        self.precision = class_average_precision(matches, single_precision=rules.as_unloc)
        self.found = {multiple: found_at_multiple(matches, multiple) for multiple in rules.recall_multiples}

    def metrics(self) -> dict[str, float]:
        """The metrics of `detection`."""
        return self._means(self.precision, np.ones(len(self.matches.truth)))

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP@t and AP@avg of every class in percent."""
        names = [*(f"AP@{threshold:.2f}" for threshold in self.rules.thresholds), "AP@avg"]
        values = 100.0 * self.precision
        values = np.column_stack([values, values[:, self.rules.averaged].mean(axis=1)])
        return pd.DataFrame(values, self.matches.classes, names).to_dict("index")

    def drawn(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric for weights (draws, videos)."""
        draws = np.ones((len(weights), len(self.matches.videos) + 1))  # the last: videos without ground truth
        draws[:, :-1] = weights[:, : len(self.matches.videos)]
        rows = [
            self._means(values[present], draw[self.matches.truth_video])
            for draw, (values, present) in zip(draws, weighted_precision(self.matches, draws), strict=True)
        ]
        return {name: np.array([metrics[name] for metrics in rows]) for name in rows[0]}

    def _means(self, precision: np.ndarray, weights: np.ndarray) -> dict[str, float]:
        """Metrics from the precision (classes, thresholds) of the present classes, and weights of the ground truth."""
        metrics, thresholds, counts = {}, self.rules.thresholds, {"mAP": len(precision) + self.num_absent}
        if self.rules.as_unloc:
            counts["mAP_present_classes"] = len(precision)
        for name, count in counts.items():
            mean = 100.0 * precision.sum(axis=0) / count if count else np.full(len(thresholds), np.nan)
            metrics |= {f"{name}@{threshold:.2f}": float(at) for threshold, at in zip(thresholds, mean, strict=True)}
            metrics[f"{name}@avg"] = float(mean[self.rules.averaged].mean())
        codes, num_classes = self.matches.truth_class, len(self.matches.classes)
        present = np.bincount(codes, weights, minlength=num_classes)
        for multiple, found in self.found.items():  # recall: the mean over classes of the share found
            for threshold, column in zip(thresholds, found.T, strict=True):
                share = np.bincount(codes, weights * column, minlength=num_classes)[present > 0] / present[present > 0]
                metrics[f"recall@{multiple}x@{threshold:.2f}"] = 100.0 * float(share.mean()) if len(share) else np.nan
        return metrics


def kept_truth(instances: pd.DataFrame, rules: DetectionProtocol) -> pd.DataFrame:
    """The instances that the protocol counts: without too short ones and repeats within 1 ms if it drops them."""
    instances = instances[instances["end_seconds"] - instances["start_seconds"] >= rules.shortest_seconds]
    keep = np.ones(len(instances), dtype=bool)
    if rules.drops_repeats:
        segments = instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
        for rows in instances.groupby(["video_id", "label"]).indices.values():
            for number, row in enumerate(rows):
                earlier = segments[rows[:number][keep[rows[:number]]]]
                keep[row] = not (abs(segments[row] - earlier) <= 1e-3).all(axis=1).any()
    return instances[keep]


def class_average_precision(
    matches: Matches, kept: np.ndarray | slice = slice(None), *, single_precision: bool = False
) -> np.ndarray:
    """(classes, thresholds) average precision of every class with ground truth, of the detections `kept`.
    `single_precision`: precision and recall are rounded to float32 as in UnLoc's scorer (differs by 1e-8).
    """
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    values = np.zeros((len(matches.classes), len(matches.thresholds)))
    kind = np.float32 if single_precision else np.float64
    starts = np.searchsorted(matches.class_code[kept], np.arange(1, len(counts)))
    for code, hits in zip(range(len(counts)), np.split(matches.hits[kept], starts), strict=False):
        true = np.cumsum(hits, axis=0).astype(kind)
        precision = (true / np.arange(1, len(hits) + 1, dtype=kind)[:, None]).astype(np.float64)
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        if single_precision:
            recall = (true / np.float32(counts[code])).astype(np.float64)
            values[code] = (np.diff(recall, axis=0, prepend=0.0) * precision).sum(axis=0)
        else:
            values[code] = (precision * hits).sum(axis=0) / counts[code]
    return values


def weighted_precision(matches: Matches, draws: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Average precision (classes, thresholds), and which (classes,) have ground truth, for each row of weights (draws,
    videos + 1); the last weight is that of detections in videos without ground truth.
    """
    num_classes = len(matches.classes)
    columns = [np.flatnonzero(column) for column in matches.hits.T]
    for draw in draws:
        weight = draw[matches.video_code]
        truth = np.bincount(matches.truth_class, draw[matches.truth_video], minlength=num_classes)
        before = np.concatenate([[0.0], np.cumsum(weight)])
        values = np.zeros((num_classes, len(columns)))
        for column, hits in enumerate(columns):
            code = matches.class_code[hits]
            true = np.concatenate([[0.0], np.cumsum(weight[hits])])
            true_in_class = true[1:] - true[np.searchsorted(code, code)]
            seen_in_class = before[hits + 1] - before[matches.starts[code]]
            precision = np.divide(true_in_class, seen_in_class, out=np.zeros(len(hits)), where=seen_in_class > 0)
            # Monotone from the right within each class: each class is shifted above all later ones.
            lift = 2.0 * (num_classes - code)
            precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
            values[:, column] = np.bincount(code, precision * weight[hits], minlength=num_classes)
        yield values / np.maximum(truth, 1e-300)[:, None], truth > 0


def found_at_multiple(matches: Matches, multiple: int) -> np.ndarray:
    """(N, thresholds) True for ground truth that any of the k·n best detections of its video and class reaches. n is
    the number of ground truths there; one detection may find several (ActionFormer, OpenTAD).
    """
    order = np.argsort(matches.keys, kind="stable")
    ranked, keys = matches.segments[order], matches.keys[order]
    _, group, counts = np.unique(matches.truth_keys, return_inverse=True, return_counts=True)
    starts, ends = (np.searchsorted(keys, matches.truth_keys, side=side) for side in ("left", "right"))
    rows = zip(starts, np.minimum(ends, starts + multiple * counts[group]), matches.truth, strict=True)
    best = [overlap_over_union(ranked[start:end], truth).max(initial=-1.0) for start, end, truth in rows]
    return np.array(best)[:, None] >= matches.thresholds
