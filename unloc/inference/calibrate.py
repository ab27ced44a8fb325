"""Fits the existence score on validation: queries in their own video, and in other videos of the split."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from unloc.annotations.schema import Manifest
from unloc.examples.examples import Examples
from unloc.examples.sources import Source
from unloc.inference.existence import Calibration, best_score, evidence, mean_direction, write_calibration
from unloc.inference.load import LoadedModel, load_model
from unloc.inference.predict import QUERY_BATCH, core_and_source, predict_moments
from unloc.tasks import task_named

logger = logging.getLogger(__name__)
MOST_QUERIES, FEWEST_QUERIES = 400, 10
PENALTY = 1.0  # L2, on the weights of standardised evidence


def calibrate(loaded: LoadedModel, manifest: Manifest, source: Source) -> Calibration | None:
    """The calibration of a model of sentences on one split; None where that has too few queries or one video only. Each
    query is asked of its own video (there if it has a moment), and of another one that has not the same sentence.
    """
    loaded, source = core_and_source(loaded, source)
    examples = Examples(loaded.info.recipe.task, manifest, source, loaded.info.recipe.data)
    rng, rows, videos_of = np.random.default_rng(0), examples.queries, defaultdict(set)
    for row in rows:
        videos_of[row["text"]].add(row["video_id"])
    videos, pairs = sorted(set(examples.videos)), []
    for index in rng.permutation(len(rows))[:MOST_QUERIES]:
        row, start = rows[index], int(rng.integers(len(videos)))
        pairs.append((row["video_id"], row["text"], len(row["segments"]) > 0))
        others = (video for video in videos[start:] + videos[:start] if video not in videos_of[row["text"]])
        if (other := next(others, None)) is not None:
            pairs.append((other, row["text"], False))
    pairs.sort()  # a model with an image tower encodes each video once
    is_there = np.array([there for *_, there in pairs], dtype=bool)
    if min(is_there.sum(), (~is_there).sum()) < FEWEST_QUERIES:
        return None
    asked = dict.fromkeys(video for video, *_ in pairs)
    background = np.mean([mean_direction(examples.video(video).frames) for video in asked], axis=0).round(6)
    found = []
    for first in range(0, len(pairs), QUERY_BATCH):
        part = pairs[first : first + QUERY_BATCH]
        shown, texts = [examples.video(video) for video, *_ in part], [examples.texts[text] for _, text, _ in part]
        moments = predict_moments(loaded, shown, texts)
        for video, text, (windows, _) in zip(shown, texts, moments, strict=True):
            found.append(evidence(best_score(windows), video.frames, text, background))
    weights, bias = fit_logistic(np.array(found), is_there)
    scores = 1.0 / (1.0 + np.exp(-(np.array(found) @ weights + bias)))
    threshold = best_threshold(scores, is_there)
    kept, rejected = (scores[is_there] >= threshold).mean(), (scores[~is_there] < threshold).mean()
    counts = {"queries_there": int(is_there.sum()), "queries_not": int((~is_there).sum())}
    shares = {"percent_kept": 100.0 * float(kept), "percent_rejected": 100.0 * float(rejected)}
    fitted = {"weights": weights, "bias": bias, "background": tuple(background.tolist()), "threshold": threshold}
    return Calibration(**fitted, fitted_on={"split": manifest.splits[0]} | counts | shares)


def fit_logistic(evidence: np.ndarray, is_there: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Weights and bias of a logistic regression with as much weight on those that are there as on the others."""
    mean, scale = evidence.mean(axis=0), np.maximum(evidence.std(axis=0), 1e-6)
    inputs = np.column_stack([(evidence - mean) / scale, np.ones(len(evidence))])
    share = np.where(is_there, 0.5 / is_there.mean(), 0.5 / (~is_there).mean())
    penalty, found = np.diag([PENALTY] * evidence.shape[1] + [1e-6]), np.zeros(inputs.shape[1])
    for _ in range(50):  # Newton's method
        probability = 1.0 / (1.0 + np.exp(-inputs @ found))
        gradient = inputs.T @ (share * (probability - is_there)) + penalty @ found
        curvature = (inputs * (share * probability * (1 - probability))[:, None]).T @ inputs + penalty
        found = found - np.linalg.solve(curvature, gradient)
    weights = found[:-1] / scale
    return tuple(weights.tolist()), float(found[-1] - weights @ mean)


def best_threshold(scores: np.ndarray, is_there: np.ndarray) -> float:
    """The score between two neighbours at which the mean of kept and rejected shares is highest; nearest to 0.5."""
    levels = np.unique(scores)
    middles = (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else np.array([0.5])
    right = [(scores[is_there] >= at).mean() + (scores[~is_there] < at).mean() for at in middles]
    best = middles[np.isclose(right, np.max(right))]
    return float(best[np.abs(best - 0.5).argmin()])


def calibrate_run(run: Path, held_out: Mapping[str, tuple[Manifest, Source]], device: torch.device) -> None:
    """Write the calibration of a run's best model for each of its tasks of sentences, from their validation splits."""
    for task, (val, source) in held_out.items():
        if task_named(task).text_kind != "query":
            continue
        found = calibrate(load_model(run, device, [task]), val, source)
        if found is None:
            logger.info("%s: too few queries or videos in validation to calibrate what is not in a video", task)
            continue
        write_calibration(run / "checkpoints" / "best", task, found)
        shares = found.fitted_on["percent_kept"], found.fitted_on["percent_rejected"]
        message = "%s: in a video from %.2f on: %.0f %% of queries kept, %.0f %% of others rejected"
        logger.info(message, task, found.threshold, *shares)
