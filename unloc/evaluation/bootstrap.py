"""95 % intervals: how much a score would change if other videos of the same kind had been drawn.

Videos are drawn with replacement, as many as there are; a video drawn twice counts twice, which is what scoring a copy
of it gives. Matches within a video do not depend on the draw, so each draw only weights them.

The spread of the draws is centred on the score itself: mAP of copied videos is biased upwards (fewer distinct videos,
and precision is made monotone), on ActivityNet by 2 points, so plain percentiles would not contain the score.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from unloc.evaluation.detection import DetectionScores, Matches, found_at_multiple, mean_recall
from unloc.evaluation.queries import QueryScores
from unloc.evaluation.segmentation import FrameScores, frame_counts, frame_map, frame_precision, weighted_counts

DRAWS = 1000
MAP_DRAWS = 100  # of action segmentation's mAP, which counts all frames for every class in every draw
COVERED = (2.5, 97.5)


def bootstrap_intervals(scores: DetectionScores | QueryScores | FrameScores, seed: int) -> dict[str, list[float]]:
    """[2.5 %, 97.5 %] of every metric in percent; none for metrics that are undefined.

    Of detections, those in videos without ground truth count once in every draw.
    """
    if isinstance(scores, DetectionScores):
        num_videos = scores.num_videos if scores.matches.videos else 0
    elif isinstance(scores, QueryScores):
        videos, index = np.unique(scores.video_ids, return_inverse=True)
        num_videos = len(videos)
    else:
        num_videos = len(scores.frames)
    if not num_videos:
        return {}
    weights, more = video_weights(num_videos, seed), {}
    if isinstance(scores, QueryScores):
        return percentiles(scores.weighted_metrics(weights[:, index]), scores.metrics())
    if isinstance(scores, FrameScores):
        counts, centre = frame_counts(scores.frames), scores.metrics()
        drawn = [weighted_counts(counts, row) for row in weights]
        if any(video.scores is not None for video in scores.frames):
            more = percentiles(frame_map(frame_precision(scores.frames, weights[:MAP_DRAWS])), centre)
    else:
        centre, *drawn = _weighted_detection_metrics(scores, weights)
    return percentiles({name: np.array([draw[name] for draw in drawn]) for name in drawn[0]}, centre) | more


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


def _weighted_detection_metrics(scores: DetectionScores, weights: np.ndarray) -> Iterator[dict[str, float]]:
    """mAP and recall@kx, first of all videos counted once, then for each row of weights (draws, videos)."""
    matches, num_videos = scores.matches, len(scores.matches.videos)
    draws = np.ones((len(weights) + 1, num_videos + 1))
    draws[1:, :-1] = weights[:, :num_videos]
    found = {multiple: found_at_multiple(matches, multiple) for multiple in scores.rules.recall_multiples}
    for draw, (values, present) in zip(draws, weighted_precision(matches, draws), strict=True):
        metrics = scores.mean_precision(values[present])
        for multiple, flags in found.items():
            metrics |= mean_recall(flags, matches, multiple, draw[matches.truth_video])
        yield metrics


def weighted_precision(matches: Matches, draws: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Average precision (classes, thresholds), and which (classes,) have ground truth, for each row of weights.

    `draws` (draws, videos + 1); the last weight is that of detections in videos without ground truth.
    """
    num_classes = len(matches.classes)
    starts = np.array([rows.start for rows in matches.by_class()], dtype=np.int64)
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
            seen_in_class = before[hits + 1] - before[starts[code]]
            precision = np.divide(true_in_class, seen_in_class, out=np.zeros(len(hits)), where=seen_in_class > 0)
            # Monotone from the right within each class: each class is shifted above all later ones.
            lift = 2.0 * (num_classes - code)
            precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
            values[:, column] = np.bincount(code, precision * weight[hits], minlength=num_classes)
        yield values / np.maximum(truth, 1e-300)[:, None], truth > 0
