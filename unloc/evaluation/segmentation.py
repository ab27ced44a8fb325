"""Action segmentation: frame accuracy and mAP as for COIN, segmental F1 and edit score beside them.

Ground truth per frame k of a prediction at F fps: a segment paints frames floor(start·F) up to ceil(end·F), later
segments overwrite (VideoCLIP's rows, at its 1 fps). Background is a class of its own in the accuracy.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from unloc.data.predictions import FramePrediction
from unloc.data.schema import Manifest

OVERLAPS = (0.10, 0.25, 0.50)
BACKGROUND = -1


def painted(segments: np.ndarray, labels: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """(num_frames,) class of each frame, -1 background."""
    frames = np.full(num_frames, BACKGROUND, dtype=np.int64)
    for (start, end), label in zip(segments, labels, strict=True):
        frames[max(0, int(np.floor(start * fps + 1e-9))) : max(0, int(np.ceil(end * fps - 1e-9)))] = label
    return frames


def action_segmentation(predictions: Sequence[FramePrediction], manifest: Manifest) -> dict[str, float]:
    """frame_accuracy, mAP (classes present), mAP_all_classes, F1@10/25/50 and edit in percent.

    A video without prediction, and frames a prediction does not reach, count as predicted background.
    """
    truth, predicted, scores = _frame_labels(predictions, manifest)
    total = sum(map(len, truth))
    correct = sum(int((one == other).sum()) for one, other in zip(truth, predicted, strict=True))
    metrics = {"frame_accuracy": 100.0 * correct / total if total else 0.0}
    if all(item is not None for item in scores) and scores:
        metrics |= frame_map(np.concatenate(truth), np.concatenate(scores))
    for overlap in OVERLAPS:
        metrics[f"F1@{round(100 * overlap)}"] = 100.0 * segmental_f1(truth, predicted, overlap)
    edits = [edit_score(one, other) for one, other in zip(truth, predicted, strict=True)]
    return metrics | {"edit": 100.0 * float(np.mean(edits)) if edits else 0.0}


def _frame_labels(
    predictions: Sequence[FramePrediction], manifest: Manifest
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray | None]]:
    by_video = {item.video_id: item for item in predictions}
    code = {name: index for index, name in enumerate(manifest.classes)}
    rows = dict(list(manifest.instances.groupby("video_id", sort=False)))
    fps = predictions[0].fps if predictions else 1.0
    truth, predicted, scores = [], [], []
    for video_id, duration in manifest.videos[["video_id", "duration_seconds"]].itertuples(index=False):
        item = by_video.get(video_id)
        rate = item.fps if item is not None else fps
        num_frames = int(np.ceil(duration * rate - 1e-6))
        instances = rows.get(video_id)
        segments = np.zeros((0, 2)) if instances is None else instances[["start_seconds", "end_seconds"]].to_numpy()
        labels = np.zeros(0) if instances is None else instances["label"].map(code).to_numpy()
        truth.append(painted(segments, labels, num_frames, rate))
        predicted.append(_fitted_labels(item, code, num_frames))
        scores.append(_fitted_scores(item, num_frames))
    return truth, predicted, scores


def _fitted_labels(item: FramePrediction | None, code: dict[str, int], num_frames: int) -> np.ndarray:
    labels = np.full(num_frames, BACKGROUND, dtype=np.int64)
    if item is not None:
        coded = [BACKGROUND if name is None else code.get(name, len(code)) for name in item.labels[:num_frames]]
        labels[: len(coded)] = coded
    return labels


def _fitted_scores(item: FramePrediction | None, num_frames: int) -> np.ndarray | None:
    if item is None or item.scores is None:
        return None
    kept = np.asarray(item.scores)[:num_frames]
    rest = np.full((num_frames - len(kept), kept.shape[1]), kept.min() if kept.size else 0.0)
    return np.concatenate([kept, rest])


def frame_map(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """mAP over the classes that occur, and over all: absent ones count 0, as in new versions of scikit-learn."""
    present = [code for code in range(scores.shape[1]) if (labels == code).any()]
    values = [uninterpolated_precision(labels == code, scores[:, code]) for code in present]
    return {
        "mAP": 100.0 * float(np.mean(values)) if values else 0.0,
        "mAP_all_classes": 100.0 * float(np.sum(values)) / scores.shape[1],
    }


def uninterpolated_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Average precision without interpolation, equal scores grouped (scikit-learn's definition)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    true = np.cumsum(positive[order])[last_of_tie]
    return float((np.diff(np.r_[0, true]) * true / (last_of_tie + 1)).sum() / positive.sum())


def runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, first frame, frame after) of every run that is not background."""
    edges = np.flatnonzero(np.r_[True, np.diff(labels) != 0, True]) if len(labels) else np.zeros(1, dtype=int)
    pieces = pairwise(edges)
    return [(int(labels[first]), int(first), int(after)) for first, after in pieces if labels[first] != BACKGROUND]


def segmental_f1(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray], overlap: float) -> float:
    """F1 of predicted runs over all videos: a run is right if it overlaps a free run of its class by IoU >= overlap."""
    true_positive = false_positive = false_negative = 0
    for one, other in zip(truth, predicted, strict=True):
        wanted, found = runs(one), runs(other)
        free = [True] * len(wanted)
        for label, first, after in found:
            ratios = [_run_ratio((label, first, after), item) for item in wanted]
            best = int(np.argmax(ratios)) if ratios else -1
            if best >= 0 and ratios[best] >= overlap and free[best]:
                free[best] = False
                true_positive += 1
            else:
                false_positive += 1
        false_negative += sum(free)
    denominator = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / denominator if denominator else 1.0


def _run_ratio(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    if one[0] != other[0]:
        return 0.0
    overlap = min(one[2], other[2]) - max(one[1], other[1])
    return max(overlap, 0) / (max(one[2], other[2]) - min(one[1], other[1]))


def edit_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - Levenshtein distance of the two sequences of classes over the longer one; 1 where both are empty."""
    wanted, found = [run[0] for run in runs(truth)], [run[0] for run in runs(predicted)]
    if not wanted and not found:
        return 1.0
    previous = np.arange(len(found) + 1)
    for row, label in enumerate(wanted, start=1):
        current = np.empty_like(previous)
        current[0] = row
        for column, other in enumerate(found, start=1):
            replaced = previous[column - 1] + (label != other)
            current[column] = min(previous[column] + 1, current[column - 1] + 1, replaced)
        previous = current
    return 1.0 - previous[-1] / max(len(wanted), len(found))
