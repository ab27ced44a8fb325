"""95 % intervals: how much a score would move if other videos of the same kind had been drawn.

Videos are drawn with replacement, as many as there are; a video drawn twice counts twice, which is what scoring a copy
of it gives. Detections matched in a video stay matched, so each draw only weighs them anew.

The spread of the draws is put around the score itself: mAP of copied videos comes out too high (fewer different
videos, and precision made monotone), on ActivityNet by 2 points, so that plain percentiles would not hold the score.
"""

from collections.abc import Sequence

import numpy as np

from unloc.evaluation.detection import DetectionProtocol, found_at_multiple, mean_precision, mean_recall
from unloc.evaluation.frame_precision import frame_map, frame_precision
from unloc.evaluation.matching import Matches
from unloc.evaluation.rows import QueryValues
from unloc.evaluation.segmentation import (
    VideoFrames,
    frame_counts,
    segmentation_metrics,
    weighted_counts,
)

DRAWS = 1000
MAP_DRAWS = 100  # of action segmentation's mAP, which counts all frames for every class in every draw
COVERED = (2.5, 97.5)


def video_weights(num_videos: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """(draws, videos) how often each video is drawn."""
    return np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1.0 / num_videos), size=draws)


def percentiles(draws: Sequence[dict[str, float]] | dict[str, np.ndarray], centre: dict[str, float]) -> dict:
    """[2.5 %, 97.5 %] of every metric over the draws in which it is defined, their mean moved to `centre`; in 0 to 100.

    Metrics that are undefined in `centre` or in all draws have none.
    """
    if not isinstance(draws, dict):
        draws = {name: np.array([draw[name] for draw in draws]) for name in (draws[0] if draws else {})}
    intervals = {}
    for name, column in draws.items():
        defined = column[np.isfinite(column)]
        if len(defined) and np.isfinite(centre[name]):
            ends = np.percentile(defined, COVERED) - defined.mean() + centre[name]
            intervals[name] = np.clip(ends, 0.0, 100.0).tolist()
    return intervals


def query_intervals(values: QueryValues, seed: int) -> dict[str, list[float]]:
    """Intervals of metrics that are means over queries."""
    videos, index = np.unique(values.video_ids, return_inverse=True)
    if not len(videos):
        return {}
    return percentiles(values.weighted_means(video_weights(len(videos), seed)[:, index]), values.means())


def frame_intervals(frames: Sequence[VideoFrames], seed: int) -> dict[str, list[float]]:
    """Intervals of action segmentation; those of mAP from fewer draws."""
    if not frames:
        return {}
    counts, weights, centre = frame_counts(frames), video_weights(len(frames), seed), segmentation_metrics(frames)
    intervals = percentiles([weighted_counts(counts, row) for row in weights], centre)
    if any(video.scores is not None for video in frames):
        intervals |= percentiles(frame_map(frame_precision(frames, weights[:MAP_DRAWS])), centre)
    return intervals


def detection_intervals(
    matches: Matches, rules: DetectionProtocol, num_videos: int, absent_classes: int, seed: int
) -> dict[str, list[float]]:
    """Intervals of mAP and recall@kx over videos with ground truth; detections elsewhere count once in every draw.

    `num_videos`: all videos of the split, with ground truth or not; `absent_classes`: classes without ground truth
    that the protocol's mean counts as 0.
    """
    if not len(matches.videos):
        return {}
    scorer = WeightedPrecision(matches)
    found = {multiple: found_at_multiple(matches, multiple) for multiple in rules.recall_multiples}

    def scored(weights: np.ndarray) -> dict[str, float]:
        values, present = scorer.values(weights)
        draw = mean_precision(values[present], rules, absent_classes)
        for multiple, flags in found.items():
            draw |= mean_recall(flags, matches, multiple, weights[matches.truth_video])
        return draw

    drawn = video_weights(num_videos, seed)[:, : len(matches.videos)]
    draws = [scored(np.append(weights, 1).astype(np.float64)) for weights in drawn]
    return percentiles(draws, scored(np.ones(len(matches.videos) + 1)))


class WeightedPrecision:
    """Average precision of every class under weights of the videos; what does not change is worked out once."""

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
            # Monotone from the right within each class: later classes are lifted below earlier ones.
            lift = 2.0 * (len(found.classes) - code)
            precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
            values[:, column] = np.bincount(code, precision * weight[hits], minlength=len(found.classes))
        return values / np.maximum(truth, 1e-300)[:, None], truth > 0
