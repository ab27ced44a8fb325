"""Average precision of classes over frames, with the scores of one video in memory at a time.

Without interpolation, equal scores as one step (scikit-learn's definition), each frame weighted by its seconds. Only
the scores of a class's own frames are steps: a first pass over the videos collects them, a second counts for each step
the seconds of all frames with at least its score. Memory grows with the number of labelled frames, not with frames
times classes (12 GB for COIN at 10 fps).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from unloc.evaluation.segmentation import VideoFrames

CELLS = 20_000_000  # steps times draws that are counted in one pass


def frame_precision(frames: Sequence["VideoFrames"], weights: np.ndarray) -> np.ndarray:
    """(classes, draws) average precision with each video counted `weights` (draws, videos) times.

    NaN where no frame of the class is drawn. Frames without scores rank last.
    """
    num_classes = next((video.scores.shape[1] for video in frames if video.scores is not None), 0)
    classes, scores, seconds, owner, lowest = _own_frames(frames, num_classes)
    begins = np.flatnonzero((np.diff(classes, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0))
    bounds = np.searchsorted(classes[begins], np.arange(num_classes + 1))
    step = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(classes)))
    precision = np.full((num_classes, len(weights)), np.nan)
    for block in _blocks(bounds, len(weights)):
        found = _seconds_at_steps(frames, weights, scores[begins], bounds, block, lowest)
        for code in block:
            first, after = bounds[code], bounds[code + 1]
            own = slice(*np.searchsorted(step, (first, after)))
            drawn = seconds[own] * weights[:, owner[own]]
            right = np.add.reduceat(drawn, begins[first:after] - own.start, axis=1)[:, ::-1] if drawn.size else drawn
            seen = found[:, first - bounds[block.start] : after - bounds[block.start]][:, ::-1].cumsum(axis=1)
            share = np.divide(right.cumsum(axis=1), seen, out=np.zeros(seen.shape), where=seen > 0)
            total = right.sum(axis=1)
            np.divide((right * share).sum(axis=1), total, out=precision[code], where=total > 0)
    return precision


def frame_map(precision: np.ndarray) -> dict[str, np.ndarray]:
    """(draws,) mAP in percent of precision (classes, draws): over the classes that occur, and over all.

    Absent classes count 0 in the latter, as in new versions of scikit-learn.
    """
    total, present = 100.0 * np.nansum(precision, axis=0), np.isfinite(precision).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {"mAP": total / present, "mAP_all_classes": total / np.float64(len(precision))}


def _scores(video: "VideoFrames", num_classes: int) -> np.ndarray:
    """(frames, classes) scores of one video, NaN for frames without scores."""
    if video.scores is None:
        return np.broadcast_to(np.nan, (len(video.rows), num_classes))
    given = np.asarray(video.scores)
    known = video.rows < len(given)
    if known.all():
        return given[video.rows]
    return np.where(known[:, None], given[np.where(known, video.rows, 0)], np.nan)


def _own_frames(frames: Sequence["VideoFrames"], num_classes: int) -> tuple[np.ndarray, ...]:
    """Class, its score, seconds and video of every labelled frame, by class and then by rising score; and the lowest of
    all scores.
    """
    columns, lowest = [], np.inf
    for number, video in enumerate(frames):
        own = np.flatnonzero((video.truth >= 0) & (video.truth < num_classes))
        scores = _scores(video, num_classes)
        if video.scores is not None:
            lowest = min(lowest, float(np.asarray(video.scores).min()))
        values = scores[own, video.truth[own]].astype(np.float64)
        columns.append((video.truth[own], values, video.seconds[own], np.full(len(own), number)))
    classes, scores, seconds, owner = (np.concatenate(column) for column in zip(*columns, strict=True))
    scores = np.where(np.isnan(scores), lowest, scores)
    order = np.lexsort((scores, classes))
    return *(column[order] for column in (classes, scores, seconds, owner)), lowest


def _blocks(bounds: np.ndarray, num_draws: int) -> Iterator[range]:
    """Ranges of classes whose steps fit into CELLS."""
    first = 0
    for code in range(len(bounds) - 1):
        if code > first and (bounds[code + 1] - bounds[first]) * num_draws > CELLS:
            yield range(first, code)
            first = code
    yield range(first, len(bounds) - 1)


def _seconds_at_steps(
    frames: Sequence["VideoFrames"],
    weights: np.ndarray,
    values: np.ndarray,
    bounds: np.ndarray,
    block: range,
    lowest: float,
) -> np.ndarray:
    """(draws, steps of the block) weighted seconds of the frames that score at least a step and less than the next."""
    offset = bounds[block.start]
    found = np.zeros((len(weights), bounds[block.stop] - offset))
    for number, video in enumerate(frames):
        scores, seconds = _scores(video, len(bounds) - 1), video.seconds
        for code in block:
            steps = values[bounds[code] : bounds[code + 1]]
            if len(steps):
                column = scores[:, code].astype(np.float64)
                column[np.isnan(column)] = lowest
                level = np.searchsorted(steps, column, side="right")  # 0: below all steps, not needed
                counts = np.bincount(level, seconds, minlength=len(steps) + 1)[1:]
                reached = np.flatnonzero(counts)
                found[:, bounds[code] - offset + reached] += weights[:, number, None] * counts[reached]
    return found
