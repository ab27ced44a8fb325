"""Moment retrieval: R@n at IoU m and mIoU, and QVHighlights' own moment metrics.

Protocols of R@n (papers do not always say which they use):
  default  IoU >= m, ground truth clamped to [0, duration]     the official UnLoc comparison
  raw      IoU >= m, ground truth as annotated
  2d-tan   IoU > m, ground truth clamped, the file's order with NMS at 0.5, union taken as the hull
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unloc.data.predictions import MomentPrediction
from unloc.data.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.detection import ACTIVITYNET_THRESHOLDS, interpolated_precision, match, overlap_over_union

PROTOCOLS = ("default", "raw", "2d-tan")
RANKS, THRESHOLDS = (1, 5), (0.5, 0.7)
QVHIGHLIGHTS_RANGES = {"full": (-1.0, np.inf), "short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
QVHIGHLIGHTS_THRESHOLDS = np.round(ACTIVITYNET_THRESHOLDS, 2)
MAX_WINDOWS = 10  # QVHighlights scores the first ten entries of a list


def align(predictions: Sequence[MomentPrediction], manifest: Manifest) -> list[MomentPrediction | None]:
    """The prediction of every query of the manifest, None where there is none.

    By qid where qid and video agree with the manifest, else by video and sentence, in file order for repeats.
    """
    by_qid = {(item.qid, item.video_id): item for item in predictions}
    by_text: dict[tuple[str, str], list[MomentPrediction]] = defaultdict(list)
    for item in predictions:
        by_text[(item.video_id, _words(item.query))].append(item)
    aligned = []
    for qid, video_id, text in manifest.queries[["qid", "video_id", "text"]].itertuples(index=False):
        item = by_qid.get((qid, video_id))
        if item is None or (item.query and _words(item.query) != _words(text)):
            waiting = by_text.get((video_id, _words(text)))
            item = waiting.pop(0) if waiting else None
        aligned.append(item)
    return aligned


def _words(text: str) -> str:
    """A sentence without the blanks and line breaks that releases carry around and inside it."""
    return " ".join(text.split())


def truth_of(manifest: Manifest, *, clamp: bool) -> list[np.ndarray]:
    """(N, 2) ground truth of every query, cut to its video where asked for and the length is known."""
    durations = manifest.videos.drop_duplicates("video_id").set_index("video_id")["duration_seconds"].to_dict()
    truth = []
    for video_id, segments in manifest.queries[["video_id", "segments"]].itertuples(index=False):
        windows = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
        duration = durations.get(video_id, np.nan)
        truth.append(np.clip(windows, 0.0, duration) if clamp and np.isfinite(duration or np.nan) else windows)
    return truth


def ranked(prediction: MomentPrediction | None) -> np.ndarray:
    """(N, 2) windows by falling score; equal scores keep the file's order."""
    if prediction is None or not len(prediction.windows):
        return np.zeros((0, 2))
    return prediction.windows[np.argsort(-prediction.windows[:, 2], kind="stable"), :2]


def moment_retrieval(
    predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str = "default"
) -> dict[str, float]:
    """R1, R5 at IoU 0.5 and 0.7 and mIoU in percent over all queries of the (selected) manifest.

    A query without prediction is a miss. Several ground-truth windows: the best counts.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol: got {protocol!r} for moment retrieval, expected one of {', '.join(PROTOCOLS)}")
    truth = truth_of(manifest, clamp=protocol != "raw")
    best = np.zeros((len(truth), max(RANKS)))
    for row, (windows, prediction) in enumerate(zip(truth, align(predictions, manifest), strict=True)):
        candidates = _first_after_nms(prediction) if protocol == "2d-tan" else ranked(prediction)[: max(RANKS)]
        if len(candidates) and len(windows):
            ratio = _hull_ratio if protocol == "2d-tan" else _finite_ratio
            best[row, : len(candidates)] = ratio(candidates[:, None], windows[None]).max(axis=1)
    reached = np.maximum.accumulate(best, axis=1)
    compare = np.greater if protocol == "2d-tan" else np.greater_equal
    metrics = {
        f"R{rank}@{threshold}": 100.0 * float(compare(reached[:, rank - 1], threshold).mean()) if len(truth) else 0.0
        for rank in RANKS
        for threshold in THRESHOLDS
    }
    return metrics | {"mIoU": 100.0 * float(best[:, 0].mean()) if len(truth) else 0.0}


def _finite_ratio(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    ratio = overlap_over_union(segments, others)
    return np.where(np.isfinite(ratio), ratio, 0.0)


def _hull_ratio(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap over the hull: the union of 2D-TAN and of QVHighlights' R1."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    hull = np.maximum(segments[..., 1], others[..., 1]) - np.minimum(segments[..., 0], others[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(hull > 0, np.maximum(overlap, 0.0) / hull, 0.0)


def _first_after_nms(prediction: MomentPrediction | None, threshold: float = 0.5) -> np.ndarray:
    """2D-TAN's candidates: the file's order, each kept unless it overlaps a kept one by more than the threshold."""
    kept: list[np.ndarray] = []
    for candidate in [] if prediction is None else prediction.windows[:, :2]:
        if all(overlap_over_union(candidate, other) <= threshold for other in kept):
            kept.append(candidate)
        if len(kept) == max(RANKS):
            break
    return np.asarray(kept).reshape(-1, 2)


def qvhighlights_moments(predictions: Sequence[MomentPrediction], manifest: Manifest) -> dict[str, float]:
    """MR-{full,short,middle,long}-{mAP, mAP@0.5, mAP@0.75, R1@0.5, R1@0.7} in percent (moment_detr's evaluation).

    mAP: the first ten entries of a list, then by score; per query, then the mean. R1: the first entry, scores ignored.
    For a length range only the ground truth within it is kept, and queries without any are left out.
    """
    truth, aligned = truth_of(manifest, clamp=False), align(predictions, manifest)
    metrics: dict[str, float] = {}
    for name, (shortest, longest) in QVHIGHLIGHTS_RANGES.items():
        precision, first = [], []
        for windows, prediction in zip(truth, aligned, strict=True):
            lengths = windows[:, 1] - windows[:, 0]
            kept = windows[(lengths > shortest) & (lengths <= longest)] if name != "full" else windows
            if len(kept):
                precision.append(_query_precision(prediction, kept))
                first.append(_first_ratio(prediction, kept))
        metrics |= _range_metrics(f"MR-{name}", np.asarray(precision).reshape(-1, 10), np.asarray(first))
    return metrics


def _range_metrics(prefix: str, precision: np.ndarray, first: np.ndarray) -> dict[str, float]:
    mean = 100.0 * precision.mean(axis=0) if len(precision) else np.zeros(10)
    values = {f"{prefix}-mAP": float(mean.mean())}
    values |= {f"{prefix}-mAP@{threshold}": float(mean[column]) for column, threshold in ((0, 0.5), (5, 0.75))}
    return values | {
        f"{prefix}-R1@{threshold}": 100.0 * float((first >= threshold).mean()) if len(first) else 0.0
        for threshold in THRESHOLDS
    }


def _query_precision(prediction: MomentPrediction | None, truth: np.ndarray) -> np.ndarray:
    if prediction is None or not len(prediction.windows):
        return np.zeros(len(QVHIGHLIGHTS_THRESHOLDS))
    entries = prediction.windows[:MAX_WINDOWS]
    entries = entries[np.argsort(-entries[:, 2], kind="stable"), :2]
    zeros = np.zeros(len(entries), dtype=np.int64)
    hits = match(zeros, entries, np.zeros(len(truth), dtype=np.int64), truth, QVHIGHLIGHTS_THRESHOLDS)
    return interpolated_precision(hits, len(truth))


def _first_ratio(prediction: MomentPrediction | None, truth: np.ndarray) -> float:
    if prediction is None or not len(prediction.windows):
        return 0.0
    return float(_hull_ratio(prediction.windows[0, :2][None], truth).max())
