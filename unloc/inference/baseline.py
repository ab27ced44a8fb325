"""The baseline without training: similarity of frame and text tokens, thresholded into segments.

Cosine of each frame token with the text's EOS token; consecutive frames whose similarity, standardised within the
video, is above a threshold are a prediction, scored by their mean similarity.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.cache.reading import Cache, CachedVideo
from unloc.errors import InputError
from unloc.examples.steps import at_distinct_times, nearest_index, token_spans
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table

THRESHOLDS = (0.0, 0.5, 1.0, 1.5)  # standard deviations above the video's mean


def require_embeddings(cache: Cache) -> None:
    """Raise InputError where frames and texts of a cache are not CLIP's embeddings: only these can be compared."""
    wanted = {"tower.projected": True, "tower.texts_projected": True, "tower.num_layers": 1}
    stated = {key: cache.fingerprint.get(key, value) for key, value in wanted.items()}
    others = [f"{key} {value}" for key, value in stated.items() if value != wanted[key]]
    if others:
        raise InputError(
            f"{cache.path}: the baseline compares CLIP's embeddings, the cache has other tokens ({', '.join(others)}); "
            "extract a cache with the projections"
        )


def cosine_similarity(frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(T, C) cosine of frames (T, D) and texts (C, D)."""
    frames, texts = frames.astype(np.float32), texts.astype(np.float32)
    frames = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-8)
    return frames @ (texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-8)).T


def segments_above(similarity: np.ndarray, cached: CachedVideo) -> np.ndarray:
    """(N, 3) start, end, score of all runs of frames whose (T,) similarity is above a threshold, best first."""
    spans = token_spans(cached.times_seconds, cached.meta["duration_seconds"])
    standard = (similarity - similarity.mean()) / max(float(similarity.std()), 1e-8)
    found: dict[tuple[float, float], float] = {}
    for threshold in THRESHOLDS:
        edges = np.diff(np.concatenate([[0], (standard > threshold).astype(int), [0]]))
        for first, after in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            segment = (float(spans[first, 0]), float(spans[after - 1, 1]))
            found[segment] = max(found.get(segment, -1.0), float(similarity[first:after].mean()))
    rows = [(start, end, score) for (start, end), score in found.items()]
    return np.asarray(sorted(rows, key=lambda row: -row[2]), dtype=np.float64).reshape(-1, 3)


def baseline_moments(manifest: Manifest, cache: Cache) -> list[MomentPrediction]:
    """Predictions for every query whose video is cached, with saliency per 2 s clip."""
    queries = [row for row in manifest.queries.to_dict("records") if row["video_id"] in cache]
    unique = list(dict.fromkeys(row["text"] for row in queries))
    eos = {text: tokens[-1:] for text, tokens in zip(unique, cache.texts(unique), strict=True)}
    predictions = []
    for row in queries:
        cached = cache[row["video_id"]]
        similarity = cosine_similarity(cached.frames[0], eos[row["text"]])[:, 0]
        num_clips = max(1, int(cached.meta["duration_seconds"] / CLIP_SECONDS))
        middles = (np.arange(num_clips) + 0.5) * CLIP_SECONDS
        named = {"qid": row["qid"], "video_id": row["video_id"], "query": row["text"]}
        saliency = similarity[nearest_index(cached.times_seconds, middles)]
        predictions.append(MomentPrediction(**named, windows=segments_above(similarity, cached), saliency=saliency))
    return predictions


def _class_similarity(manifest: Manifest, cache: Cache) -> Iterator[tuple[str, np.ndarray, CachedVideo]]:
    """Every cached video with the similarity (T, C) of its frames and the classes."""
    eos = np.stack([tokens[-1] for tokens in cache.texts(list(manifest.classes))])
    for video_id in dict.fromkeys(manifest.videos["video_id"]):
        if video_id in cache:
            cached = cache[video_id]
            yield video_id, cosine_similarity(cached.frames[0], eos), cached


def baseline_detections(manifest: Manifest, cache: Cache) -> pd.DataFrame:
    """Detections of every class in every cached video."""
    rows = []
    for video_id, similarity, cached in _class_similarity(manifest, cache):
        for name, column in zip(manifest.classes, similarity.T, strict=True):
            rows += [(video_id, name, *segment) for segment in segments_above(column, cached)]
    return detections_table(rows)


def baseline_frames(manifest: Manifest, cache: Cache) -> list[FramePrediction]:
    """The most similar class of each frame; background where that similarity is below the video's median."""
    predictions = []
    for video_id, similarity, cached in _class_similarity(manifest, cache):
        times, scores = at_distinct_times(cached.times_seconds, similarity)
        best = scores.max(axis=1)
        names = [manifest.classes[index] for index in scores.argmax(axis=1)]
        labels = [name if score > np.median(best) else None for name, score in zip(names, best, strict=True)]
        predictions.append(FramePrediction(video_id=video_id, times_seconds=times, labels=labels, scores=scores))
    return predictions
