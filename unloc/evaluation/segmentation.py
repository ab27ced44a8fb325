"""Action segmentation: frame accuracy and mAP as for COIN, segmental F1 and edit score beside them.

Ground truth per frame k of a prediction at F fps; later segments overwrite, background is a class of its own:
coin    VideoCLIP: a video has ceil(duration·F) frames, a segment paints floor(start·F) up to before ceil(end·F)
unloc   UnLoc: floor(duration·F) frames, a segment paints round(start·F) up to and with round(end·F)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unloc.data.predictions import FramePrediction
from unloc.data.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.runs import BACKGROUND, OVERLAPS, edit_score, f1_of, run_counts

ROUNDING = 1e-6  # of frames: 12.3 s at 10 fps are 123 frames, whatever the floating point says


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """How one official code turns seconds into frames; each function takes seconds · fps."""

    name: str
    num_frames: Callable[[float], int]
    first: Callable[[float], int]
    after: Callable[[float], int]


PROTOCOLS = {
    rule.name: rule
    for rule in (
        FrameRule(
            name="coin",
            num_frames=lambda frames: int(np.ceil(frames - ROUNDING)),
            first=lambda frames: int(np.floor(frames + ROUNDING)),
            after=lambda frames: int(np.ceil(frames - ROUNDING)),
        ),
        FrameRule(
            name="unloc",
            num_frames=lambda frames: int(np.floor(frames + ROUNDING)),
            first=lambda frames: round(frames),
            after=lambda frames: round(frames) + 1,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """Truth and prediction of one video, frame by frame."""

    video_id: str
    truth: np.ndarray
    """(frames,) class, -1 background."""
    predicted: np.ndarray
    """(frames,) the same; a name the manifest does not know is a class of its own."""
    scores: np.ndarray | None
    """(given frames, classes) as predicted; may be shorter or longer than the video."""


def painted(
    segments: np.ndarray, labels: np.ndarray, num_frames: int, fps: float, rule: FrameRule = PROTOCOLS["coin"]
) -> np.ndarray:
    """(num_frames,) class of each frame, -1 background."""
    frames = np.full(num_frames, BACKGROUND, dtype=np.int64)
    for (start, end), label in zip(segments, labels, strict=True):
        frames[max(0, rule.first(start * fps)) : max(0, rule.after(end * fps))] = label
    return frames


def action_segmentation(
    predictions: Sequence[FramePrediction], manifest: Manifest, protocol: str = "coin"
) -> dict[str, float]:
    """frame_accuracy, mAP (classes present), mAP_all_classes, F1@10/25/50 and edit in percent.

    A video without prediction, and frames a prediction does not reach, count as predicted background. mAP stands there
    where class scores are given; videos and frames without them rank last. Raises InputError for an unknown protocol.
    """
    return segmentation_metrics(video_frames(predictions, manifest, protocol))


def video_frames(
    predictions: Sequence[FramePrediction], manifest: Manifest, protocol: str = "coin"
) -> list[VideoFrames]:
    """Every video of the manifest; one without prediction at the frame rate of the first prediction.

    Raises InputError for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol: got {protocol!r} for as, expected one of {', '.join(PROTOCOLS)}")
    rule, by_video = PROTOCOLS[protocol], {item.video_id: item for item in predictions}
    code = {name: index for index, name in enumerate(manifest.classes)}
    rows = dict(list(manifest.instances.groupby("video_id", sort=False)))
    default = FramePrediction(video_id="", fps=predictions[0].fps if predictions else 1.0, labels=[])
    frames = []
    for video_id, duration in manifest.videos[["video_id", "duration_seconds"]].itertuples(index=False):
        item, instances = by_video.get(video_id, default), rows.get(video_id)
        segments = np.zeros((0, 2)) if instances is None else instances[["start_seconds", "end_seconds"]].to_numpy()
        labels = np.zeros(0) if instances is None else instances["label"].map(code).to_numpy()
        if not np.isfinite(duration):  # the manifest does not know: as long as the prediction or the last segment
            duration = max(len(item.labels) / item.fps, segments[:, 1].max(initial=0.0))
        truth = painted(segments, labels, rule.num_frames(duration * item.fps), item.fps, rule)
        predicted = _fitted_labels(item, code, len(truth))
        frames.append(VideoFrames(video_id=video_id, truth=truth, predicted=predicted, scores=item.scores))
    return frames


def _fitted_labels(item: FramePrediction, code: dict[str, int], num_frames: int) -> np.ndarray:
    labels = np.full(num_frames, BACKGROUND, dtype=np.int64)
    coded = [BACKGROUND if name is None else code.get(name, len(code)) for name in item.labels[:num_frames]]
    labels[: len(coded)] = coded
    return labels


def segmentation_metrics(frames: Sequence[VideoFrames]) -> dict[str, float]:
    """The metrics in percent."""
    metrics = weighted_counts(frame_counts(frames), np.ones(len(frames)))
    if any(video.scores is not None for video in frames):
        metrics |= frame_map(np.concatenate([video.truth for video in frames]), score_columns(frames))
    return metrics


def frame_counts(frames: Sequence[VideoFrames]) -> dict[str, np.ndarray]:
    """What all metrics but mAP are made of, per video: correct frames, frames, edit score, run counts."""
    counts = {
        "correct": np.array([(video.truth == video.predicted).sum() for video in frames], dtype=np.float64),
        "frames": np.array([len(video.truth) for video in frames], dtype=np.float64),
        "edit": np.array([edit_score(video.truth, video.predicted) for video in frames]),
    }
    for overlap in OVERLAPS:
        rows = [run_counts(video.truth, video.predicted, overlap) for video in frames]
        counts[f"F1@{round(100 * overlap)}"] = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    return counts


def weighted_counts(counts: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
    """frame_accuracy, F1 and edit in percent with each video counted `weights` times; NaN without any frame."""
    total, num_videos = float(weights @ counts["frames"]), float(weights.sum())
    metrics = {"frame_accuracy": 100.0 * float(weights @ counts["correct"]) / total if total else np.nan}
    metrics |= {name: 100.0 * f1_of(weights @ table) for name, table in counts.items() if name.startswith("F1@")}
    return metrics | {"edit": 100.0 * float(weights @ counts["edit"]) / num_videos if num_videos else np.nan}


def score_columns(frames: Sequence[VideoFrames]) -> Iterable[np.ndarray]:
    """The scores of each class in turn over the frames of all videos; what is not given ranks last."""
    given = [video.scores for video in frames if video.scores is not None and video.scores.size]
    num_classes = given[0].shape[1] if given else 0
    lowest = min((float(scores.min()) for scores in given), default=0.0)
    for code in range(num_classes):
        column = []
        for video in frames:
            rest = np.full(len(video.truth), lowest)
            if video.scores is not None and video.scores.size:
                kept = video.scores[: len(rest), code]
                rest[: len(kept)] = kept
            column.append(rest)
        yield np.concatenate(column)


def frame_map(labels: np.ndarray, columns: Iterable[np.ndarray]) -> dict[str, float]:
    """mAP over the classes that occur, and over all: absent ones count 0, as in new versions of scikit-learn.

    `columns` are the (frames,) scores of each class in turn.
    """
    values, num_classes = [], 0
    for code, scores in enumerate(columns):
        num_classes += 1
        if (labels == code).any():
            values.append(uninterpolated_precision(labels == code, scores))
    return {
        "mAP": 100.0 * float(np.mean(values)) if values else np.nan,
        "mAP_all_classes": 100.0 * float(np.sum(values)) / num_classes if num_classes else np.nan,
    }


def uninterpolated_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Average precision without interpolation, equal scores grouped (scikit-learn's definition)."""
    values, counts = np.unique(scores[positive], return_counts=True)
    true = np.cumsum(counts[::-1])[::-1]
    found = len(scores) - np.searchsorted(np.sort(scores), values)  # frames that score as much or more
    return float((counts * true / found).sum() / true[0])
