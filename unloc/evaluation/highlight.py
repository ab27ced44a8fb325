"""Highlight detection as QVHighlights scores it (moment_detr's evaluation): HL-mAP and Hit1 per rating level."""

from collections.abc import Sequence

import numpy as np

from unloc.annotations.durations import required_durations
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.queries import Aligned, QueryScores, align
from unloc.predictions.records import MomentPrediction

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}


def highlight_detection(predictions: Sequence[MomentPrediction], manifest: Manifest) -> dict[str, float]:
    """HL-min-{Fair,Good,VeryGood}-{mAP,Hit1} in percent over the rated queries.

    The three raters are scored separately: Hit1 is 1 if the best clip is good for any of them, mAP is the mean over
    queries and raters. Of equally good clips the first is the best. A query without prediction misses Hit1 and is
    ranked as if all its clips were equal: officially a missing score is 0.
    """
    return highlight_scores(align(predictions, manifest), manifest).metrics()


def highlight_scores(aligned: Aligned, manifest: Manifest) -> QueryScores:
    """The same for every query, NaN if it is not rated."""
    precisions, hits = (np.full((len(aligned), len(LEVELS)), np.nan) for _ in range(2))
    minimums = np.array(list(LEVELS.values()))
    for row, (ratings, prediction) in enumerate(zip(ratings_of(manifest), aligned, strict=True)):
        if ratings is None:
            continue
        saliency = np.zeros(0) if prediction is None or prediction.saliency is None else prediction.saliency
        # As officially, scores are cut to the clips of the video, or padded with zeros.
        kept = np.asarray(saliency, dtype=np.float64)[: len(ratings)]
        scores = np.concatenate([kept, np.zeros(len(ratings) - len(kept))])
        positive = ratings[:, None, :] >= minimums[None, :, None]  # (clips, levels, raters)
        of_raters = clip_average_precision(positive.reshape(len(ratings), -1), scores).reshape(len(LEVELS), -1)
        precisions[row] = of_raters.mean(axis=1)
        best = int(np.argmax(saliency)) if len(saliency) else len(ratings)
        hits[row] = positive[best].any(axis=1) if best < len(ratings) else False
    values: dict[str, np.ndarray] = {}
    for level, name in enumerate(LEVELS):
        values |= {f"HL-min-{name}-mAP": precisions[:, level], f"HL-min-{name}-Hit1": hits[:, level]}
    return QueryScores(manifest.queries["video_id"].to_numpy(dtype=object), values)


def ratings_of(manifest: Manifest) -> list[np.ndarray | None]:
    """(clips, raters) ratings of every query, 0 outside its relevant clips; None if it is not rated.

    Raises InputError if the duration of a video is unknown.
    """
    durations = required_durations(manifest)
    rated: list[np.ndarray | None] = []
    columns = ["video_id", "relevant_clip_ids", "saliency_scores"]
    for video_id, clip_ids, scores in manifest.queries[columns].itertuples(index=False):
        if not isinstance(scores, list):
            rated.append(None)
            continue
        num_clips = int(durations.get(video_id, 0.0) / CLIP_SECONDS)  # 0: a query of a video that no row describes
        ratings = np.zeros((num_clips, len(scores[0]) if scores else 3))
        for clip, row in zip(clip_ids, scores, strict=True):
            if clip < len(ratings):
                ratings[clip] = row
        rated.append(ratings)
    return rated


def clip_average_precision(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(columns,) QVHighlights' AP of positive (clips, columns): monotone precision, averaged where recall changes.

    Equal scores are one step. Each change of recall weighs the same, however many positives it adds; no positives 0,
    all positives 1.
    """
    if not len(scores):
        return np.zeros(positive.shape[1])
    order = np.argsort(-scores, kind="stable")
    in_order = scores[order]
    last_of_tie = np.flatnonzero(np.append(in_order[1:] != in_order[:-1], True))
    true = np.cumsum(positive[order], axis=0)[last_of_tie]
    precision = true / (last_of_tie + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    changes = true > np.vstack([np.zeros_like(true[:1]), true[:-1]])
    mean = (precision * changes).sum(axis=0) / np.maximum(changes.sum(axis=0), 1)
    return np.where(true[-1] == len(scores), 1.0, mean)
