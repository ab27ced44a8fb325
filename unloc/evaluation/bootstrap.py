"""95 % intervals: how much a score would change if other videos of the same kind had been drawn.

Videos are drawn with replacement, as many as there are; a video drawn twice counts twice, which is what scoring a copy
of it gives. Matches within a video do not depend on the draw, so each draw only weights them.

The spread of the draws is centred on the score itself: mAP of copied videos is biased upwards (fewer distinct videos,
and precision is made monotone), on ActivityNet by 2 points, so plain percentiles would not contain the score.
"""

from collections.abc import Mapping

import numpy as np

from unloc.evaluation.detection import DetectionScores, found_at_multiple, mean_recall
from unloc.evaluation.frame_precision import frame_map, frame_precision
from unloc.evaluation.matching import Matches
from unloc.evaluation.queries import QueryScores
from unloc.evaluation.segmentation import FrameScores, frame_counts, weighted_counts

DRAWS = 1000
MAP_DRAWS = 100  # of action segmentation's mAP, which counts all frames for every class in every draw
COVERED = (2.5, 97.5)


def bootstrap_intervals(scores: DetectionScores | QueryScores | FrameScores, seed: int) -> dict[str, list[float]]:
    """[2.5 %, 97.5 %] of every metric in percent; none for metrics that are undefined."""
    if isinstance(scores, DetectionScores):
        return _detection_intervals(scores, seed)
    if isinstance(scores, FrameScores):
        return _frame_intervals(scores, seed)
    videos, index = np.unique(scores.video_ids, return_inverse=True)
    if not len(videos):
        return {}
    return percentiles(scores.weighted_metrics(video_weights(len(videos), seed)[:, index]), scores.metrics())


def video_weights(num_videos: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """(draws, videos) how often each video is drawn."""
    return np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1.0 / num_videos), size=draws)


def percentiles(draws: Mapping[str, np.ndarray], centre: Mapping[str, float]) -> dict[str, list[float]]:
    """[2.5 %, 97.5 %] of every metric over the draws that define it, their mean moved to `centre`; within 0 to 100.

    Metrics that are undefined in `centre` or in all draws have none.
    """
    intervals = {}
    for name, column in draws.items():
        defined = column[np.isfinite(column)]
        if len(defined) and np.isfinite(centre[name]):
            ends = np.percentile(defined, COVERED) - defined.mean() + centre[name]
            intervals[name] = np.clip(ends, 0.0, 100.0).tolist()
    return intervals


def _frame_intervals(scores: FrameScores, seed: int) -> dict[str, list[float]]:
    """Intervals of action segmentation; those of mAP from fewer draws."""
    frames = scores.frames
    if not frames:
        return {}
    counts, weights, centre = frame_counts(frames), video_weights(len(frames), seed), scores.metrics()
    draws = [weighted_counts(counts, row) for row in weights]
    intervals = percentiles({name: np.array([draw[name] for draw in draws]) for name in draws[0]}, centre)
    if any(video.scores is not None for video in frames):
        intervals |= percentiles(frame_map(frame_precision(frames, weights[:MAP_DRAWS])), centre)
    return intervals


def _detection_intervals(scores: DetectionScores, seed: int) -> dict[str, list[float]]:
    """Intervals of mAP and recall@kx over videos with ground truth; detections elsewhere count once in every draw."""
    matches = scores.matches
    if not len(matches.videos):
        return {}
    precision = WeightedPrecision(matches)
    found = {multiple: found_at_multiple(matches, multiple) for multiple in scores.rules.recall_multiples}

    def scored(weights: np.ndarray) -> dict[str, float]:
        values, present = precision.values(weights)
        draw = scores.mean_precision(values[present])
        for multiple, flags in found.items():
            draw |= mean_recall(flags, matches, multiple, weights[matches.truth_video])
        return draw

    drawn = video_weights(scores.num_videos, seed)[:, : len(matches.videos)]
    draws = [scored(np.append(weights, 1).astype(np.float64)) for weights in drawn]
    centre = scored(np.ones(len(matches.videos) + 1))
    return percentiles({name: np.array([draw[name] for draw in draws]) for name in centre}, centre)


class WeightedPrecision:
    """Average precision of every class for weighted videos; what does not depend on the weights is computed once."""

    def __init__(self, matches: Matches) -> None:
        self.matches = matches
        self.starts = np.array([rows.start for rows in matches.by_class()], dtype=np.int64)
        self.columns = [np.flatnonzero(column) for column in matches.hits.T]

    def values(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((classes, thresholds), (classes,) whether the class has ground truth) for weights (videos + 1,)."""
        found = self.matches
        weight = weights[found.video_code]
        truth = np.bincount(found.truth_class, weights[found.truth_video], minlength=len(found.classes))
        before = np.concatenate([[0.0], np.cumsum(weight)])
        values = np.zeros((len(found.classes), len(self.columns)))
        for column, hits in enumerate(self.columns):
            code = found.class_code[hits]
            true = np.concatenate([[0.0], np.cumsum(weight[hits])])
            true_in_class = true[1:] - true[np.searchsorted(code, code)]
            seen_in_class = before[hits + 1] - before[self.starts[code]]
            precision = np.divide(true_in_class, seen_in_class, out=np.zeros(len(hits)), where=seen_in_class > 0)
            # Monotone from the right within each class: each class is shifted above all later ones.
            lift = 2.0 * (len(found.classes) - code)
            precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
            values[:, column] = np.bincount(code, precision * weight[hits], minlength=len(found.classes))
        return values / np.maximum(truth, 1e-300)[:, None], truth > 0
