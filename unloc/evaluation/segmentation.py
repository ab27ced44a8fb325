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

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.evaluation.detection import hull_ratio
from unloc.evaluation.protocols import FrameProtocol, protocol_for
from unloc.predictions.records import FramePrediction, StoredScores

BACKGROUND = -1
LONGEST_FRAME_SECONDS = 2.5  # features of two-second clips still are frames
OVERLAPS = (0.10, 0.25, 0.50)  # IoU of segmental F1
CELLS = 20_000_000  # of average precision: steps times draws in one pass, about
MAP_DRAWS = 100  # bootstrap draws of mAP, which counts all frames for every class in every draw
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

    edges: np.ndarray  # (frames + 1,) seconds at which frames begin, and the last one ends
    truth: np.ndarray  # (frames,) class, -1 background
    predicted: np.ndarray  # (frames,) the same; a name that the manifest does not know is a class of its own
    rows: np.ndarray  # (frames,) index into the given labels and rows of scores; past the last label there is none
    scores: np.ndarray | StoredScores | None  # (given labels, classes) as predicted

    @property
    def seconds(self) -> np.ndarray:
        """(frames,) duration of each frame."""
        return np.diff(self.edges)


@dataclass(frozen=True)
class FrameScores:
    """Every video of a split in frames."""

    frames: Sequence[VideoFrames]
    classes: tuple[str, ...] = ()

    @property
    def num_videos(self) -> int:
        """Number of videos, also without frames."""
        return len(self.frames)

    @cached_property
    def precision(self) -> np.ndarray:
        """(classes,) average precision as a fraction: NaN for absent classes, empty without scores."""
        return frame_precision(self.frames, np.ones((1, len(self.frames))))[:, 0]

    def metrics(self) -> dict[str, float]:
        """The metrics of `action_segmentation`."""
        metrics = weighted_counts(frame_counts(self.frames), np.ones(len(self.frames)))
        return metrics | {name: float(value[0]) for name, value in frame_map(self.precision[:, None]).items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP of every class that occurs in percent; empty without scores."""
        named = zip(self.classes, self.precision, strict=False)
        return {name: {"AP": 100.0 * float(value)} for name, value in named if np.isfinite(value)}

    def drawn(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric in percent for weights (draws, videos); of mAP for the first of them."""
        counts = frame_counts(self.frames)
        drawn = [weighted_counts(counts, row) for row in weights]
        draws = {name: np.array([metrics[name] for metrics in drawn]) for name in drawn[0]}
        return draws | frame_map(frame_precision(self.frames, weights[:MAP_DRAWS]))


def frame_scores(predictions: Sequence[FramePrediction], manifest: Manifest, rules: FrameProtocol) -> FrameScores:
    """Every video of the (selected) manifest in frames; one without prediction at the rate that the first prediction
    states, else 1 fps. Raises InputError if a duration is unknown.
    """
    by_video, durations = {item.video_id: item for item in predictions}, manifest.required_durations()
    code = {name: index for index, name in enumerate(manifest.classes)}
    instances = dict(list(manifest.instances.groupby("video_id", sort=False)))
    fps = (predictions[0].fps if predictions else None) or 1.0
    frames = []
    for video_id in manifest.videos["video_id"]:
        item, duration = by_video.get(video_id), durations[video_id]
        if item is None or not (item.labels or item.fps):
            item = FramePrediction(video_id=video_id, fps=fps, labels=[])
        table = instances.get(video_id, manifest.instances[:0])
        segments = table[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
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
        frames.append(
            VideoFrames(
                edges=edges,
                truth=frame_labels(places, table["label"].map(code), num_frames, rules),
                predicted=np.array([*labels, BACKGROUND])[np.minimum(rows, len(labels))],
                rows=rows,
                scores=item.scores if item.scores is not None and 0 not in item.scores.shape else None,
            )
        )
    return FrameScores(frames, manifest.classes)


def frame_labels(places: np.ndarray, labels: np.ndarray, num_frames: int, rules: FrameProtocol) -> np.ndarray:
    """(num_frames,) class of each frame, -1 background; `places` (N, 2) are segments in frames."""
    frames = np.full(num_frames, BACKGROUND, dtype=np.int64)
    for (start, end), label in zip(places, labels, strict=True):
        frames[max(0, rules.first(start)) : max(0, rules.after(end))] = label
    return frames


def frame_counts(frames: Sequence[VideoFrames]) -> dict[str, np.ndarray]:
    """What all metrics but mAP are computed from, per video: correct seconds, seconds, edit score, and for each of
    OVERLAPS the counts (right, wrong, missed) of predicted runs.
    """
    correct, seconds, edit = np.zeros((3, len(frames)))
    runs = np.zeros((len(OVERLAPS), len(frames), 3), dtype=np.int64)
    for number, video in enumerate(frames):
        wanted, found = label_runs(video.truth), label_runs(video.predicted)
        # A run is right if the true run of its class with the best IoU reaches the overlap and no earlier one took it.
        ratio = hull_ratio(video.edges[found[:, None, 1:]], video.edges[wanted[None, :, 1:]])
        ratio = np.where(found[:, None, 0] == wanted[None, :, 0], ratio, 0.0)
        ratio = np.pad(ratio, [(0, 0), (0, 1)])  # a last column of zeros: there may be nothing wanted
        best, reached = ratio.argmax(axis=1), ratio.max(axis=1)
        for column, overlap in enumerate(OVERLAPS):
            right = len(np.unique(best[reached >= overlap - ROUNDING]))
            runs[column, number] = right, len(found) - right, len(wanted) - right
        # Edit score: 1 - Levenshtein distance of the two sequences of classes over the longer one; 1 if both are empty.
        distance = steps = np.arange(len(found) + 1)
        for row, label in enumerate(wanted[:, 0], start=1):
            changed = np.minimum(distance[1:] + 1, distance[:-1] + (found[:, 0] != label))
            distance = np.minimum.accumulate(np.append(row, changed) - steps) + steps
        edit[number] = 1.0 - distance[-1] / max(len(wanted), len(found), 1)
        correct[number], seconds[number] = video.seconds[video.truth == video.predicted].sum(), video.seconds.sum()
    f1_counts = {f"F1@{round(100 * overlap)}": counts for overlap, counts in zip(OVERLAPS, runs, strict=True)}
    return {"right": correct, "seconds": seconds, "edit": edit} | f1_counts


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


def label_runs(labels: np.ndarray) -> np.ndarray:
    """(runs, 3) class, first frame and frame after of every run of equal labels that is not background."""
    edges = np.flatnonzero(np.r_[True, np.diff(labels) != 0, True]) if len(labels) else np.zeros(1, dtype=np.int64)
    runs = np.column_stack([labels[edges[:-1]], edges[:-1], edges[1:]])
    return runs[runs[:, 0] != BACKGROUND]


def frame_precision(frames: Sequence[VideoFrames], weights: np.ndarray) -> np.ndarray:
    """(classes, draws) average precision with each video counted `weights` (draws, videos) times.

    NaN where no frame of the class is drawn. Frames without scores rank last. Without interpolation, equal scores as
    one step (scikit-learn's definition), each frame weighted by its seconds. A first pass over the videos collects the
    scores of each class's own frames, which are the steps, a second counts for each step the seconds of all frames with
    at least its score: in memory are the scores of one video, not of all (12 GB for COIN at 10 fps).
    """
    num_classes = next((video.scores.shape[1] for video in frames if video.scores is not None), 0)
    if not num_classes:
        return np.zeros((0, len(weights)))
    # Class, its score, seconds and video of every labelled frame, by class and then by rising score.
    columns, lowest = [], np.inf
    for number, video in enumerate(frames):
        own = np.flatnonzero((video.truth >= 0) & (video.truth < num_classes))
        values = _score_rows(video, num_classes)[own, video.truth[own]].astype(np.float64)
        columns.append((video.truth[own], values, video.seconds[own], np.full(len(own), number)))
        if video.scores is not None:
            lowest = min(lowest, float(np.asarray(video.scores).min()))
    classes, values, seconds, owner = (np.concatenate(column) for column in zip(*columns, strict=True))
    values = np.where(np.isnan(values), lowest, values)
    order = np.lexsort((values, classes))
    classes, values, seconds, owner = (column[order] for column in (classes, values, seconds, owner))
    begins = np.flatnonzero((np.diff(classes, prepend=-1) != 0) | (np.diff(values, prepend=np.nan) != 0))
    num_blocks = min(num_classes, 1 + len(begins) * len(weights) // CELLS)
    begins = np.split(begins, np.searchsorted(classes[begins], np.arange(1, num_classes)))  # of the steps of each class
    precision = np.full((num_classes, len(weights)), np.nan)
    for block in np.array_split(np.arange(num_classes), num_blocks):
        # (draws, steps) of each class: weighted seconds of the frames that score at least a step and less than the next
        found = {code: np.zeros((len(weights), len(begins[code]))) for code in block if len(begins[code])}
        for number, video in enumerate(frames):
            scores = _score_rows(video, num_classes)
            for code, total in found.items():
                column = scores[:, code].astype(np.float64)
                column[np.isnan(column)] = lowest
                level = np.searchsorted(values[begins[code]], column, side="right")  # 0: below all steps, not needed
                counts = np.bincount(level, video.seconds, minlength=len(begins[code]) + 1)[1:]
                reached = np.flatnonzero(counts)
                total[:, reached] += weights[:, number, None] * counts[reached]
        for code, total in found.items():
            own = slice(*np.searchsorted(classes, (code, code + 1)))
            right = np.add.reduceat(seconds[own] * weights[:, owner[own]], begins[code] - own.start, axis=1)[:, ::-1]
            seen = total[:, ::-1].cumsum(axis=1)
            share = np.divide(right.cumsum(axis=1), seen, out=np.zeros(seen.shape), where=seen > 0)
            drawn = right.sum(axis=1)
            np.divide((right * share).sum(axis=1), drawn, out=precision[code], where=drawn > 0)
    return precision


def frame_map(precision: np.ndarray) -> dict[str, np.ndarray]:
    """(draws,) mAP in percent of precision (classes, draws): over the classes that occur, and over all. Absent classes
    count 0 in the latter, as in new versions of scikit-learn. Nothing without scores.
    """
    total, present = 100.0 * np.nansum(precision, axis=0), np.isfinite(precision).sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = {"mAP": total / present, "mAP_all_classes": total / np.float64(len(precision))}
    return means if len(precision) else {}


def _score_rows(video: VideoFrames, num_classes: int) -> np.ndarray:
    """(frames, classes) scores of one video, NaN for frames without scores."""
    given = np.zeros((0, num_classes)) if video.scores is None else np.asarray(video.scores)
    return np.vstack([given, np.full(num_classes, np.nan)])[np.minimum(video.rows, len(given))]
