"""Highlight detection as QVHighlights scores it (moment_detr's evaluation): HL-mAP and Hit1 per rating level."""

from collections.abc import Sequence

import numpy as np

from unloc.data.predictions import MomentPrediction
from unloc.data.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.retrieval import align

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}


def highlight_detection(predictions: Sequence[MomentPrediction], manifest: Manifest) -> dict[str, float]:
    """HL-min-{Fair,Good,VeryGood}-{mAP,Hit1} in percent over the queries that carry ratings.

    The three raters are scored separately: Hit1 is met if the best clip is good for any of them, mAP is the mean over
    queries and raters. A query without prediction scores 0.
    """
    rated = manifest.queries["saliency_scores"].map(lambda scores: isinstance(scores, list))
    aligned = [item for item, keep in zip(align(predictions, manifest), rated, strict=True) if keep]
    truth = ratings_of(manifest)
    metrics: dict[str, float] = {}
    for name, level in LEVELS.items():
        hits, precision = [], []
        for ratings, prediction in zip(truth, aligned, strict=True):
            positive = ratings >= level
            scores = _fitted(prediction, len(ratings))
            hits.append(_hit(prediction, positive))
            precision += [average_precision(positive[:, rater], scores) for rater in range(positive.shape[1])]
        metrics[f"HL-min-{name}-mAP"] = 100.0 * float(np.mean(precision)) if precision else 0.0
        metrics[f"HL-min-{name}-Hit1"] = 100.0 * float(np.mean(hits)) if hits else 0.0
    return metrics


def ratings_of(manifest: Manifest) -> list[np.ndarray]:
    """(clips, raters) ratings of every rated query, 0 outside its relevant clips."""
    durations = manifest.videos.drop_duplicates("video_id").set_index("video_id")["duration_seconds"].to_dict()
    rated = []
    columns = ["video_id", "relevant_clip_ids", "saliency_scores"]
    for video_id, clip_ids, scores in manifest.queries[columns].itertuples(index=False):
        if isinstance(scores, list):
            ratings = np.zeros((int(durations[video_id] / CLIP_SECONDS), len(scores[0]) if scores else 3))
            for clip, row in zip(clip_ids, scores, strict=True):
                if clip < len(ratings):
                    ratings[clip] = row
            rated.append(ratings)
    return rated


def _fitted(prediction: MomentPrediction | None, num_clips: int) -> np.ndarray:
    """Scores cut to the clips of the video, or padded with zeros, as officially."""
    scores = np.zeros(num_clips)
    if prediction is not None and prediction.saliency is not None:
        kept = np.asarray(prediction.saliency, dtype=np.float64)[:num_clips]
        scores[: len(kept)] = kept
    return scores


def _hit(prediction: MomentPrediction | None, positive: np.ndarray) -> bool:
    if prediction is None or prediction.saliency is None or not len(prediction.saliency):
        return False
    best = int(np.argmax(prediction.saliency))
    return best < len(positive) and bool(positive[best].any())


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """QVHighlights' AP of one rater: monotone precision, averaged over the points where recall changes.

    Each change of recall weighs the same, however many positives it adds; no positives 0, all positives 1.
    """
    if not positive.any():
        return 0.0
    if positive.all():
        return 1.0
    order = np.argsort(-scores, kind="stable")
    hits, sorted_scores = positive[order], scores[order]
    last_of_tie = np.r_[np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1]
    true = np.cumsum(hits)[last_of_tie]
    precision = true / (last_of_tie + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    changes = np.diff(np.r_[0, true]) > 0
    return float(precision[changes].mean())
