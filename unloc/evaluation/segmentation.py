"""Action segmentation: frame accuracy and mAP as for COIN, plus segmental F1 and edit score.

A video is scored on the frames of its prediction, each weighted by its seconds. A time x (a start, an end, the end of
the video) becomes a position in frames: x·F at a stated rate F; between frames with true times, linearly. Background is
a class of its own; later segments overwrite earlier ones.
coin    VideoCLIP: a video has ceil(duration) frames, a segment covers floor(start) up to before ceil(end)
unloc   UnLoc: floor(duration) frames, a segment covers round(start) up to and including round(end)

Labels further apart than LONGEST_FRAME_SECONDS are not frames: the time between them is scored by whole seconds, as in
VideoCLIP. So neither an omitted nor a repeated label improves a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np

from unloc.annotations.durations import required_durations
from unloc.annotations.schema import Manifest
from unloc.evaluation.frame_precision import frame_map, frame_precision
from unloc.evaluation.protocols import FrameProtocol, protocol_for
from unloc.predictions.records import FramePrediction, StoredScores

BACKGROUND = -1
LONGEST_FRAME_SECONDS = 2.5  # features of two-second clips still are frames
OVERLAPS = (0.10, 0.25, 0.50)  # IoU of segmental F1
ROUNDING = 1e-9  # of IoU: ten frames of 0.1 s are a second, despite rounding errors


def action_segmentation(
    predictions: Sequence[FramePrediction], manifest: Manifest, protocol: str = "coin"
) -> dict[str, float]:
    """frame_accuracy, mAP (classes present), mAP_all_classes, F1@10/25/50 and edit in percent.

    A video without prediction, and frames after the end of a prediction, count as predicted background. mAP needs class
    scores; videos and frames without them rank last. Raises InputError for an unknown protocol or an unknown duration.
    """
    return frame_scores(predictions, manifest, protocol_for("as", protocol, manifest)).metrics()


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """Truth and prediction of one video, frame by frame."""

    video_id: str
    edges: np.ndarray
    """(frames + 1,) seconds at which frames begin, and the last one ends."""
    truth: np.ndarray
    """(frames,) class, -1 background."""
    predicted: np.ndarray
    """(frames,) the same; a name that the manifest does not know is a class of its own."""
    rows: np.ndarray
    """(frames,) index into the given labels and rows of scores; past the last label there is none."""
    scores: np.ndarray | StoredScores | None
    """(given labels, classes) as predicted."""

    @property
    def seconds(self) -> np.ndarray:
        """(frames,) duration of each frame."""
        return np.diff(self.edges)


@dataclass(frozen=True)
class FrameScores:
    """Every video of a split in frames."""

    frames: Sequence[VideoFrames]
    classes: tuple[str, ...] = ()

    @cached_property
    def precision(self) -> np.ndarray:
        """(classes,) average precision as a fraction: NaN for absent classes, empty without scores."""
        if all(video.scores is None for video in self.frames):
            return np.zeros(0)
        return frame_precision(self.frames, np.ones((1, len(self.frames))))[:, 0]

    def metrics(self) -> dict[str, float]:
        """The metrics of `action_segmentation`."""
        metrics = weighted_counts(frame_counts(self.frames), np.ones(len(self.frames)))
        mean = frame_map(self.precision[:, None]) if len(self.precision) else {}
        return metrics | {name: float(value[0]) for name, value in mean.items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP of every class that occurs in percent; empty without scores."""
        named = zip(self.classes, self.precision, strict=False)
        return {name: {"AP": 100.0 * float(value)} for name, value in named if np.isfinite(value)}


def frame_scores(predictions: Sequence[FramePrediction], manifest: Manifest, rules: FrameProtocol) -> FrameScores:
    """Every video of the (selected) manifest in frames; one without prediction at the rate that the first prediction
    states, else 1 fps. Raises InputError if a duration is unknown.
    """
    by_video, durations = {item.video_id: item for item in predictions}, required_durations(manifest)
    code = {name: index for index, name in enumerate(manifest.classes)}
    instances = dict(list(manifest.instances.groupby("video_id", sort=False)))
    fps = (predictions[0].fps if predictions else None) or 1.0
    frames = []
    for video_id in manifest.videos["video_id"]:
        item, table = by_video.get(video_id), instances.get(video_id)
        if item is None or not (item.labels or item.fps):
            item = FramePrediction(video_id=video_id, fps=fps, labels=[])
        segments = np.zeros((0, 2)) if table is None else table[["start_seconds", "end_seconds"]].to_numpy()
        labels = np.zeros(0) if table is None else table["label"].map(code).to_numpy()
        frames.append(_video_frames(item, code, durations[video_id], segments, labels, rules))
    return FrameScores(frames, manifest.classes)


def _video_frames(
    item: FramePrediction,
    code: dict[str, int],
    duration: float,
    segments: np.ndarray,
    classes: np.ndarray,
    rules: FrameProtocol,
) -> VideoFrames:
    if item.fps is not None:
        places, num_frames = segments * item.fps, rules.num_frames(duration * item.fps)
        edges, rows = np.arange(num_frames + 1) / item.fps, np.arange(num_frames)
    else:
        edges, seconds = item.edges(duration), np.arange(np.ceil(duration))
        is_long = np.diff(edges) > LONGEST_FRAME_SECONDS
        edges = np.union1d(edges, seconds[is_long[np.searchsorted(edges, seconds, side="right") - 1]])
        position = partial(np.interp, xp=edges, fp=np.arange(len(edges)))
        places, num_frames = position(segments), rules.num_frames(position(duration))
        edges = edges[: num_frames + 1]
        rows = (np.searchsorted(item.times_seconds, edges[:-1], side="right") - 1).clip(min=0)
    labels = [BACKGROUND if name is None else code.get(name, len(code)) for name in item.labels]
    return VideoFrames(
        video_id=item.video_id,
        edges=edges,
        truth=frame_labels(places, classes, num_frames, rules),
        predicted=np.array([*labels, BACKGROUND])[np.minimum(rows, len(labels))],
        rows=rows,
        scores=item.scores if item.scores is not None and 0 not in item.scores.shape else None,
    )


def frame_labels(places: np.ndarray, labels: np.ndarray, num_frames: int, rules: FrameProtocol) -> np.ndarray:
    """(num_frames,) class of each frame, -1 background; `places` (N, 2) are segments in frames."""
    frames = np.full(num_frames, BACKGROUND, dtype=np.int64)
    for (start, end), label in zip(places, labels, strict=True):
        frames[max(0, rules.first(start)) : max(0, rules.after(end))] = label
    return frames


# -- counts per video -----------------------------------------------------------------------------------------------


def frame_counts(frames: Sequence[VideoFrames]) -> dict[str, np.ndarray]:
    """What all metrics but mAP are computed from, per video: correct seconds, seconds, edit score, counts of runs."""
    counts = {
        "right": np.array([video.seconds[video.truth == video.predicted].sum() for video in frames]),
        "seconds": np.array([video.seconds.sum() for video in frames]),
        "edit": np.array([_edit_score(video.truth, video.predicted) for video in frames]),
    }
    for overlap in OVERLAPS:
        rows = [_run_counts(video, overlap) for video in frames]
        counts[f"F1@{round(100 * overlap)}"] = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    return counts


def weighted_counts(counts: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
    """frame_accuracy, F1 and edit in percent with each video counted `weights` times; NaN without any frame."""
    total, num_videos = float(weights @ counts["seconds"]), float(weights.sum())
    metrics = {"frame_accuracy": 100.0 * float(weights @ counts["right"]) / total if total else np.nan}
    for name, table in counts.items():
        if name.startswith("F1@"):
            right, wrong, missed = map(float, weights @ table)
            number = 2 * right + wrong + missed  # 0: nothing to find and nothing found
            metrics[name] = 100.0 * (2 * right / number if number else 1.0)
    return metrics | {"edit": 100.0 * float(weights @ counts["edit"]) / num_videos if num_videos else np.nan}


def label_runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, first frame, frame after) of every run of equal labels that is not background."""
    edges = np.flatnonzero(np.r_[True, np.diff(labels) != 0, True]) if len(labels) else np.zeros(1, dtype=int)
    pieces = pairwise(edges)
    return [(int(labels[first]), int(first), int(after)) for first, after in pieces if labels[first] != BACKGROUND]


def _run_counts(video: VideoFrames, overlap: float) -> tuple[int, int, int]:
    """(right, wrong, missed) predicted runs of one video.

    A run is right if the run of its class with the best IoU is free and reaches `overlap`.
    """
    wanted, found = (
        [(label, float(video.edges[first]), float(video.edges[after])) for label, first, after in label_runs(labels)]
        for labels in (video.truth, video.predicted)
    )
    free = [True] * len(wanted)
    right = 0
    for label, start, end in found:
        best, best_ratio = -1, -1.0
        for number, (other, other_start, other_end) in enumerate(wanted):
            covered, hull = min(end, other_end) - max(start, other_start), max(end, other_end) - min(start, other_start)
            ratio = max(covered, 0.0) / hull if label == other and hull > 0 else 0.0
            if ratio > best_ratio:
                best, best_ratio = number, ratio
        if best >= 0 and best_ratio >= overlap - ROUNDING and free[best]:
            free[best] = False
            right += 1
    return right, len(found) - right, sum(free)


def _edit_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - Levenshtein distance of the two sequences of classes over the longer one; 1 if both are empty."""
    wanted, found = [run[0] for run in label_runs(truth)], [run[0] for run in label_runs(predicted)]
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
