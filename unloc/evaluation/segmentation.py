"""Action segmentation: frame accuracy and mAP as for COIN, segmental F1 and edit score beside them.

A video is scored on the frames of its prediction, each counted by its seconds. With the time x of a start, an end or
the video's end as a position in frames (x·F at a stated rate F; between frames of true times, linearly), background a
class of its own and later segments over earlier ones:
coin    VideoCLIP: a video has ceil(duration) frames, a segment paints floor(start) up to before ceil(end)
unloc   UnLoc: floor(duration) frames, a segment paints round(start) up to and with round(end)

Labels further apart than LONGEST_FRAME_SECONDS are no frames: the time between them is scored by whole seconds, as
VideoCLIP scores. So neither a label that is left out nor one that is repeated makes a score better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from unloc.annotations.durations import durations_of
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.frame_precision import frame_map, frame_precision
from unloc.evaluation.runs import BACKGROUND, OVERLAPS, edit_score, f1_of, run_counts
from unloc.predictions.records import FramePrediction, StoredScores

ROUNDING = 1e-6  # of frames: 12.3 s at 10 fps are 123 frames, whatever the floating point says
LONGEST_FRAME_SECONDS = 2.5  # features of two-second clips are frames still


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """How one official code turns seconds into frames; each function takes a position in frames."""

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
    edges: np.ndarray
    """(frames + 1,) seconds at which frames begin, and the last one ends."""
    truth: np.ndarray
    """(frames,) class, -1 background."""
    predicted: np.ndarray
    """(frames,) the same; a name the manifest does not know is a class of its own."""
    rows: np.ndarray
    """(frames,) which of the given labels, and rows of scores, holds in each frame; past the last one none does."""
    scores: np.ndarray | StoredScores | None
    """(given labels, classes) as predicted."""

    @property
    def seconds(self) -> np.ndarray:
        """(frames,) how long each frame is."""
        return np.diff(self.edges)


def action_segmentation(
    predictions: Sequence[FramePrediction], manifest: Manifest, protocol: str = "coin"
) -> dict[str, float]:
    """frame_accuracy, mAP (classes present), mAP_all_classes, F1@10/25/50 and edit in percent.

    A video without prediction, and frames a prediction does not reach, count as predicted background. mAP stands there
    where class scores are given; videos and frames without them rank last. Raises InputError for an unknown protocol,
    or where the manifest does not state how long a video is.
    """
    return segmentation_metrics(video_frames(predictions, manifest, protocol))


def video_frames(
    predictions: Sequence[FramePrediction], manifest: Manifest, protocol: str = "coin"
) -> list[VideoFrames]:
    """Every video of the manifest; one without prediction at the rate that the first prediction states, else 1 fps.

    Raises as `action_segmentation`.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol: got {protocol!r} for as, expected one of {', '.join(PROTOCOLS)}")
    by_video, durations = {item.video_id: item for item in predictions}, durations_of(manifest)
    code = {name: index for index, name in enumerate(manifest.classes)}
    instances = dict(list(manifest.instances.groupby("video_id", sort=False)))
    fps = (predictions[0].fps if predictions else None) or 1.0
    frames = []
    for video_id in manifest.videos["video_id"]:
        item, table = by_video.get(video_id), instances.get(video_id)
        if item is None or not (item.labels or item.fps):
            item = FramePrediction(video_id=video_id, fps=fps, labels=[])
        segments = np.zeros((0, 2)) if table is None else table[["start_seconds", "end_seconds"]].to_numpy()
        classes = np.zeros(0) if table is None else table["label"].map(code).to_numpy()
        frames.append(_frames_of(item, code, durations[video_id], segments, classes, PROTOCOLS[protocol]))
    return frames


def _frames_of(
    item: FramePrediction,
    code: dict[str, int],
    duration: float,
    segments: np.ndarray,
    classes: np.ndarray,
    rule: FrameRule,
) -> VideoFrames:
    if item.fps is not None:
        places, num_frames = segments * item.fps, rule.num_frames(duration * item.fps)
        edges, rows = np.arange(num_frames + 1) / item.fps, np.arange(num_frames)
    else:
        edges = _with_whole_seconds(item.edges(duration), duration)
        position = partial(np.interp, xp=edges, fp=np.arange(len(edges)))
        places, num_frames = position(segments), rule.num_frames(position(duration))
        edges = edges[: num_frames + 1]
        rows = (np.searchsorted(item.times_seconds, edges[:-1], side="right") - 1).clip(min=0)
    labels = [BACKGROUND if name is None else code.get(name, len(code)) for name in item.labels]
    return VideoFrames(
        video_id=item.video_id,
        edges=edges,
        truth=painted(places, classes, num_frames, rule),
        predicted=np.array([*labels, BACKGROUND])[np.minimum(rows, len(labels))],
        rows=rows,
        scores=item.scores if item.scores is not None and item.scores.size else None,
    )


def _with_whole_seconds(edges: np.ndarray, duration: float) -> np.ndarray:
    """The edges, and every whole second of the video between two of them that are too far apart for a frame."""
    seconds = np.arange(np.ceil(duration))
    is_long = np.diff(edges) > LONGEST_FRAME_SECONDS
    return np.union1d(edges, seconds[is_long[np.searchsorted(edges, seconds, side="right") - 1]])


def painted(places: np.ndarray, labels: np.ndarray, num_frames: int, rule: FrameRule = PROTOCOLS["coin"]) -> np.ndarray:
    """(num_frames,) class of each frame, -1 background; `places` (N, 2) are segments in frames."""
    frames = np.full(num_frames, BACKGROUND, dtype=np.int64)
    for (start, end), label in zip(places, labels, strict=True):
        frames[max(0, rule.first(start)) : max(0, rule.after(end))] = label
    return frames


def segmentation_metrics(frames: Sequence[VideoFrames]) -> dict[str, float]:
    """The metrics in percent."""
    return metrics_and_precision(frames)[0]


def metrics_and_precision(frames: Sequence[VideoFrames]) -> tuple[dict[str, float], np.ndarray]:
    """(metrics in percent, (classes,) average precision as a fraction: NaN for absent ones, empty without scores)."""
    metrics = weighted_counts(frame_counts(frames), np.ones(len(frames)))
    if all(video.scores is None for video in frames):
        return metrics, np.zeros(0)
    precision = frame_precision(frames, np.ones((1, len(frames))))
    return metrics | {name: float(value[0]) for name, value in frame_map(precision).items()}, precision[:, 0]


def frame_counts(frames: Sequence[VideoFrames]) -> dict[str, np.ndarray]:
    """What all metrics but mAP are made of, per video: seconds that are right, seconds, edit score, run counts."""
    counts = {
        "right": np.array([video.seconds[video.truth == video.predicted].sum() for video in frames]),
        "seconds": np.array([video.seconds.sum() for video in frames]),
        "edit": np.array([edit_score(video.truth, video.predicted) for video in frames]),
    }
    for overlap in OVERLAPS:
        rows = [run_counts(video.truth, video.predicted, video.edges, overlap) for video in frames]
        counts[f"F1@{round(100 * overlap)}"] = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    return counts


def weighted_counts(counts: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
    """frame_accuracy, F1 and edit in percent with each video counted `weights` times; NaN without any frame."""
    total, num_videos = float(weights @ counts["seconds"]), float(weights.sum())
    metrics = {"frame_accuracy": 100.0 * float(weights @ counts["right"]) / total if total else np.nan}
    metrics |= {name: 100.0 * f1_of(weights @ table) for name, table in counts.items() if name.startswith("F1@")}
    return metrics | {"edit": 100.0 * float(weights @ counts["edit"]) / num_videos if num_videos else np.nan}
