"""Examples from a manifest and a cache: one class per kind of example, all with `len`, `videos` and `example`.

`example(index, rng)` is deterministic: with the same generator it gives the same example; without one it gives the
evaluation example (no jitter, no crop).
"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from unloc.annotations.durations import cached_durations
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.cache.reading import Cache
from unloc.config import DataConfig
from unloc.errors import CoverageError, ManifestError
from unloc.examples.batches import Example
from unloc.examples.steps import TimeGrid, linspace_steps, token_spans, window_offsets, window_steps

logger = logging.getLogger(__name__)
MAX_SALIENCY = 4.0  # QVHighlights raters score 0-4


def covered_videos(manifest: Manifest, cache: Cache, min_coverage: float) -> pd.DataFrame:
    """The manifest's videos that are in the cache, with their measured duration where the manifest states none.

    Missing ones are counted and logged. Raises CoverageError below `min_coverage` (0-1).
    """
    videos = cached_durations(manifest, cache).videos.drop_duplicates("video_id")
    cached = videos["video_id"].map(lambda video_id: video_id in cache)
    missing = list(videos.loc[~cached, "video_id"])
    share = float(cached.mean()) if len(videos) else 0.0
    if missing:
        logger.warning("%d of %d videos are not in the cache: %s", len(missing), len(videos), ", ".join(missing[:5]))
    if share < min_coverage or not cached.any():
        raise CoverageError(
            f"{cache.path}: holds {len(videos) - len(missing)} of the {len(videos)} videos of {manifest.name!r} "
            f"(first missing: {', '.join(missing[:3]) or 'none'}); data.coverage asks for {min_coverage:.0%} "
            "and at least one: run `unloc extract` with this manifest, or lower data.coverage"
        )
    return videos[cached].reset_index(drop=True)


@dataclass(frozen=True)
class VideoTokens:
    """Frame tokens of one video with their times."""

    video_id: str
    frames: np.ndarray
    """(T, D)."""
    times_seconds: np.ndarray
    """(T,)."""
    duration_seconds: float
    """Length of the video."""


def read_tokens(cache: Cache, video_id: str, duration_seconds: float, rng: np.random.Generator | None) -> VideoTokens:
    """Tokens of a cached video: view 0 (the centre crop), or with a generator a random view."""
    cached = cache[video_id]
    view = 0 if rng is None or len(cached.frames) == 1 else int(rng.integers(len(cached.frames)))
    return VideoTokens(video_id, cached.frames[view], cached.times_seconds, duration_seconds)


class QueryExamples:
    """One example per (video, query): MR and HD."""

    def __init__(self, manifest: Manifest, cache: Cache, config: DataConfig) -> None:
        self.cache, self.config = cache, config
        durations = covered_videos(manifest, cache, config.coverage).set_index("video_id")["duration_seconds"]
        self.durations: dict[str, float] = durations.to_dict()
        keep = manifest.queries["video_id"].isin(list(self.durations))
        self.queries = manifest.queries[keep].reset_index(drop=True)
        self.videos: list[str] = list(self.queries["video_id"])
        texts = list(dict.fromkeys(self.queries["text"]))
        self._text_tokens = dict(zip(texts, cache.texts(texts), strict=True))

    def __len__(self) -> int:
        return len(self.queries)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """The example of one query row."""
        row = self.queries.iloc[index]
        tokens = read_tokens(self.cache, row["video_id"], self.durations[row["video_id"]], rng)
        segments = np.asarray(row["segments"], dtype=np.float64).reshape(-1, 2)
        grid, chosen = linspace_steps(
            tokens.times_seconds,
            self.config.num_steps,
            stretch=random_stretch(tokens, segments, self.config, rng),
            rng=rng if self.config.jitter else None,
            pick=self.config.frame_pick,
        )
        return Example(
            video_id=row["video_id"],
            frames=tokens.frames[chosen].astype(np.float32),
            frame_mask=np.ones(self.config.num_steps, dtype=bool),
            grid=grid,
            duration_seconds=tokens.duration_seconds,
            query_index=index,
            text=self._text_tokens[row["text"]],
            segments_steps=grid.to_steps(segments),
            saliency=step_saliency(row, grid, self.config.num_steps),
        )


def random_stretch(
    tokens: VideoTokens, segments: np.ndarray, config: DataConfig, rng: np.random.Generator | None
) -> tuple[float, float] | None:
    """A random stretch of the video that keeps all segments whole, or None for the whole video (training crop)."""
    if rng is None or rng.random() >= config.crop_probability:
        return None
    first, last = float(tokens.times_seconds[0]), float(tokens.times_seconds[-1])
    length = (last - first) * rng.uniform(config.crop_min_fraction, 1.0)
    lowest = max(first, float(segments[:, 1].max(initial=first)) - length)
    highest = min(last - length, float(segments[:, 0].min(initial=last)))
    if highest < lowest:
        return None
    start = rng.uniform(lowest, highest)
    return start, start + length


def step_saliency(row: pd.Series, grid: TimeGrid, num_steps: int) -> np.ndarray | None:
    """(T,) mean of the raters over 4 at the clip each step falls in, 0 outside relevant clips; None without ratings."""
    if not isinstance(row["saliency_scores"], list):
        return None
    clip_ids, scores = row["relevant_clip_ids"], row["saliency_scores"]
    if not isinstance(clip_ids, list) or len(clip_ids) != len(scores) or not all(scores):
        raise ManifestError(
            f"line {row['line']} of the manifest: query {row['qid']!r} has not one rating for each of its "
            "relevant_clip_ids; `unloc data check` lists such rows"
        )
    by_clip = {clip: np.mean(ratings) / MAX_SALIENCY for clip, ratings in zip(clip_ids, scores, strict=True)}
    clips = np.floor(grid.to_seconds(np.arange(num_steps)) / CLIP_SECONDS).astype(int)
    return np.asarray([by_clip.get(int(clip), 0.0) for clip in clips], dtype=np.float32)


class CoveredVideos:
    """Every video that the cache covers, with its instances."""

    def __init__(self, manifest: Manifest, cache: Cache, config: DataConfig) -> None:
        self.cache, self.config = cache, config
        videos = covered_videos(manifest, cache, config.coverage)
        self.videos: list[str] = list(videos["video_id"])
        self.durations: dict[str, float] = videos.set_index("video_id")["duration_seconds"].to_dict()
        self._segments, self._classes = _instances_by_video(manifest)

    def __len__(self) -> int:
        return len(self.videos)


class InstanceExamples(CoveredVideos):
    """One example per video with all its instances: TAL."""

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """The example of one video."""
        video_id = self.videos[index]
        tokens = read_tokens(self.cache, video_id, self.durations[video_id], rng)
        segments = self._segments.get(video_id, np.zeros((0, 2)))
        classes = self._classes.get(video_id, np.zeros(0, dtype=np.int64))
        stretch = random_stretch(tokens, np.zeros((0, 2)), self.config, rng)
        grid, chosen = linspace_steps(
            tokens.times_seconds,
            self.config.num_steps,
            stretch=stretch,
            rng=rng if self.config.jitter else None,
            pick=self.config.frame_pick,
        )
        if stretch is not None:
            segments, classes = clip_segments(segments, classes, stretch)
        return Example(
            video_id=video_id,
            frames=tokens.frames[chosen].astype(np.float32),
            frame_mask=np.ones(self.config.num_steps, dtype=bool),
            grid=grid,
            duration_seconds=tokens.duration_seconds,
            segments_steps=grid.to_steps(segments),
            segment_classes=classes,
        )


def clip_segments(
    segments: np.ndarray, classes: np.ndarray, stretch: tuple[float, float], min_share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Segments cut to a stretch; those that keep less than `min_share` of their length are left out."""
    cut = np.clip(segments, *stretch)
    lengths = segments[:, 1] - segments[:, 0]
    keep = (cut[:, 1] - cut[:, 0]) >= min_share * lengths
    keep &= cut[:, 1] > cut[:, 0]
    return cut[keep], classes[keep]


def _instances_by_video(manifest: Manifest) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    class_index = {name: index for index, name in enumerate(manifest.classes)}
    unknown = manifest.instances[~manifest.instances["label"].isin(manifest.classes)]
    if len(unknown):
        raise ManifestError(
            f"line {unknown['line'].iloc[0]} of manifest {manifest.name!r}: label {unknown['label'].iloc[0]!r} is not "
            f"among its {len(manifest.classes)} classes ({len(unknown)} such segments); see `unloc data check`"
        )
    segments, classes = {}, {}
    for video_id, rows in manifest.instances.groupby("video_id", sort=False):
        segments[video_id] = rows[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
        classes[video_id] = rows["label"].map(class_index).to_numpy(dtype=np.int64)
    return segments, classes


class WindowExamples(CoveredVideos):
    """One example per video in training (a random window of it), one per window in evaluation: AS."""

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """A random window of one video, or with no generator its first window."""
        tokens = self._tokens(index, rng)
        room = len(tokens.times_seconds) - self.config.num_steps
        offset = int(rng.integers(room + 1)) if rng is not None and room > 0 else 0
        return self._window(tokens, offset)

    def windows(self, index: int) -> list[Example]:
        """All windows of one video, in order."""
        tokens = self._tokens(index, None)
        offsets = window_offsets(len(tokens.times_seconds), self.config.num_steps)
        return [self._window(tokens, offset) for offset in offsets]

    def _tokens(self, index: int, rng: np.random.Generator | None) -> VideoTokens:
        video_id = self.videos[index]
        return read_tokens(self.cache, video_id, self.durations[video_id], rng)

    def _window(self, tokens: VideoTokens, offset: int) -> Example:
        chosen, mask = window_steps(len(tokens.times_seconds), self.config.num_steps, offset)
        return Example(
            video_id=tokens.video_id,
            frames=tokens.frames[chosen].astype(np.float32),
            frame_mask=mask,
            duration_seconds=tokens.duration_seconds,
            step_classes=paint_steps(
                token_spans(tokens.times_seconds, tokens.duration_seconds)[chosen],
                self._segments.get(tokens.video_id, np.zeros((0, 2))),
                self._classes.get(tokens.video_id, np.zeros(0, dtype=np.int64)),
            ),
        )


def paint_steps(spans: np.ndarray, segments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(T,) class of each step, -1 background: that of the last segment which overlaps its span (T, 2) in seconds.

    At k / fps these are the rows floor(start·fps) to ceil(end·fps) that the metric paints (`evaluation.segmentation`).
    """
    labels = np.full(len(spans), -1, dtype=np.int64)
    for (start, end), class_index in zip(segments, classes, strict=True):
        labels[(spans[:, 1] > start + 1e-6) & (spans[:, 0] < end - 1e-6)] = class_index
    return labels
