"""The similarity of frames and texts, without training: the baseline, and what ranks the windows of a long video.

The baseline's segments are runs of frames whose cosine with the text's EOS token, standardised within the video, is
above a threshold, scored by its mean.
"""

import numpy as np

from unloc.cache.reading import CachedVideo
from unloc.examples.steps import token_spans

FRAMES_AT_ONCE = 4096
THRESHOLDS = (0.0, 0.5, 1.0, 1.5)  # of the baseline: standard deviations above the video's mean


def not_embeddings(fingerprint: dict) -> str:
    """What makes frames and texts of this fingerprint other than embeddings as CLIP's; empty where they are these."""
    wanted = {"tower.projected": True, "tower.texts_projected": True, "tower.num_layers": 1, "tower.aligned": True}
    stated = {key: fingerprint.get(key, value) for key, value in wanted.items()}
    return ", ".join(f"{key} {value}" for key, value in stated.items() if value != wanted[key])


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


def similarity_to(frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(T, C) cosine of frames (T, D) and texts (C, D), in blocks: a float32 copy of a long video is large."""
    blocks = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
    return np.concatenate([cosine_similarity(block, texts) for block in blocks])
