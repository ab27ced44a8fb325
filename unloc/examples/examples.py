"""Examples from a manifest and a source of frames and texts."""

import logging
from dataclasses import replace

import numpy as np

from unloc.annotations.schema import CLIP_SECONDS, Manifest, cached_durations
from unloc.config import DataConfig
from unloc.errors import CoverageError, ManifestError
from unloc.examples.batches import Example
from unloc.examples.sources import Source, VideoFrames
from unloc.examples.steps import TimeGrid, linspace_steps, token_spans
from unloc.tasks import task_named

logger = logging.getLogger(__name__)
MAX_SALIENCY = 4.0  # QVHighlights raters score 0-4
NO_SEGMENTS = np.zeros((0, 2))


class Examples:
    """The examples of a task over one split: a (video, query) pair each (MR, HD), or a video (TAL, AS, CLS).

    A duration that the manifest does not state is the measured one. Missing videos are counted and logged. Raises
    CoverageError where too few are in the source (`data.coverage`), ManifestError for a label that is not a class.
    """

    def __init__(self, task: str, manifest: Manifest, source: Source, config: DataConfig) -> None:
        self.task, self.source, self.config = task_named(task), source, config
        self.durations = cached_durations(manifest, source).stated_durations()
        missing = [video_id for video_id in self.durations if video_id not in source]
        total, held = len(self.durations), len(self.durations) - len(missing)
        if missing:
            logger.warning("%d of %d videos are not in the cache: %s", len(missing), total, ", ".join(missing[:5]))
        if not held or held / total < config.coverage:
            first = ", ".join(missing[:3]) or "none"
            problem = f"holds {held} of the {total} videos of {manifest.name!r} (first missing: {first})"
            advice = "run `unloc extract` with this manifest, or lower data.coverage"
            asked = f"data.coverage asks for {config.coverage:.0%} and at least one"
            raise CoverageError(f"{source.name}: {problem}; {asked}: {advice}")
        self.videos = [video_id for video_id in self.durations if video_id in source]  # of each example
        if self.task.text_kind == "query":
            queries = manifest.queries[manifest.queries["video_id"].isin(self.videos)]
            self.queries = queries.to_dict("records")  # a row of a data frame takes longer than all else of an example
            self.videos, unique = list(queries["video_id"]), queries["text"].unique().tolist()
            self.texts: dict[str, np.ndarray] = dict(zip(unique, source.texts(unique), strict=True))
            return
        class_index = {name: index for index, name in enumerate(manifest.classes)}
        rows = manifest.instances.assign(index=manifest.instances["label"].map(class_index))
        unknown = rows[rows["index"].isna()]
        if len(unknown):
            row, count = unknown.iloc[0], len(unknown)
            problem = f"label {row['label']!r} is not among its {len(class_index)} classes ({count} such segments)"
            raise ManifestError(f"line {row['line']} of manifest {manifest.name!r}: {problem}; see `unloc data check`")
        bounds = ["start_seconds", "end_seconds"]
        self._instances = {
            video_id: (part[bounds].to_numpy(dtype=np.float64), part["index"].to_numpy(dtype=np.int64))
            for video_id, part in rows.groupby("video_id", sort=False)
        }

    def __len__(self) -> int:
        return len(self.videos)

    def video(self, video_id: str, rng: np.random.Generator | None = None) -> VideoFrames:
        """The frames of one of the videos."""
        return VideoFrames(video_id, *self.source.frames(video_id, rng), self.durations[video_id])

    def instances(self, video_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Segments (N, 2) in seconds and class indices (N,) of a video."""
        return self._instances.get(video_id, (NO_SEGMENTS, np.zeros(0, dtype=np.int64)))

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """One example, the same from the same generator; without one not jittered or cropped, and the first window."""
        video, config = self.video(self.videos[index], rng), self.config
        if self.task.text_kind == "query":
            row = self.queries[index]
            segments = np.asarray(row["segments"], dtype=np.float64).reshape(-1, 2)
            crop, text = random_crop(video.times_seconds, segments, config, rng), self.texts[row["text"]]
            example = linspace_example(video, config, text=text, segments=segments, crop=crop, rng=rng)
            return replace(example, saliency=step_saliency(row, example.grid, config.num_steps))
        segments, classes = self.instances(video.video_id)
        if self.task.labelled != "steps":
            crop = random_crop(video.times_seconds, NO_SEGMENTS, config, rng)
            if crop is not None and self.task.localizes:
                segments, classes = clip_segments(segments, classes, crop)
            return linspace_example(video, config, segments=segments, segment_classes=classes, crop=crop, rng=rng)
        room = len(video.times_seconds) - config.num_steps
        offset = int(rng.integers(room + 1)) if rng is not None and room > 0 else 0
        window, chosen = window_example(video, config.num_steps, offset)
        spans = token_spans(video.times_seconds, video.duration_seconds)[chosen]
        return replace(window, step_classes=paint_steps(spans, segments, classes))


def linspace_example(
    video: VideoFrames,
    config: DataConfig,
    *,
    segments: np.ndarray = NO_SEGMENTS,
    crop: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
    **labels: np.ndarray,
) -> Example:
    """T steps evenly over a video or a crop (start, end) of it, with segments (N, 2) in seconds, text or classes."""
    jitter = rng if config.jitter else None
    pick, num_steps = config.frame_pick, config.num_steps
    grid, chosen = linspace_steps(video.times_seconds, num_steps, crop=crop, rng=jitter, pick=pick)
    return Example(
        video_id=video.video_id,
        frames=video.frames[chosen],
        frame_mask=np.ones(num_steps, dtype=bool),
        grid=grid,
        duration_seconds=video.duration_seconds,
        segments_steps=grid.to_steps(segments),
        **labels,
    )


def random_crop(
    times_seconds: np.ndarray, segments: np.ndarray, config: DataConfig, rng: np.random.Generator | None
) -> tuple[float, float] | None:
    """A random part (start, end) of the video that keeps all segments whole, or None: the whole video."""
    if rng is None or rng.random() >= config.crop_probability:
        return None
    first, last = float(times_seconds[0]), float(times_seconds[-1])
    length = (last - first) * rng.uniform(config.crop_min_fraction, 1.0)
    lowest = max(first, float(segments[:, 1].max(initial=first)) - length)
    highest = min(last - length, float(segments[:, 0].min(initial=last)))
    if highest < lowest:
        return None
    start = rng.uniform(lowest, highest)
    return start, start + length


def step_saliency(row: dict, grid: TimeGrid, num_steps: int) -> np.ndarray | None:
    """(T,) mean of the raters over 4 at the clip each step falls in, 0 outside relevant clips; None without ratings."""
    if not isinstance(row["saliency_scores"], list):
        return None
    clip_ids, scores = row["relevant_clip_ids"], row["saliency_scores"]
    if not isinstance(clip_ids, list) or len(clip_ids) != len(scores) or not all(scores):
        problem = f"query {row['qid']!r} has not one rating for each of its relevant_clip_ids"
        raise ManifestError(f"line {row['line']} of the manifest: {problem}; `unloc data check` lists such rows")
    by_clip = {clip: np.mean(ratings) / MAX_SALIENCY for clip, ratings in zip(clip_ids, scores, strict=True)}
    clips = np.floor(grid.to_seconds(np.arange(num_steps)) / CLIP_SECONDS).astype(int)
    return np.asarray([by_clip.get(int(clip), 0.0) for clip in clips], dtype=np.float32)


def clip_segments(
    segments: np.ndarray, classes: np.ndarray, crop: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Segments cut to a crop; those that keep less than half of their length are left out."""
    cut = np.clip(segments, *crop)
    kept, whole = np.diff(cut)[:, 0], np.diff(segments)[:, 0]
    keep = (kept >= 0.5 * whole) & (kept > 0)
    return cut[keep], classes[keep]


def windows_of(video: VideoFrames, num_steps: int) -> list[Example]:
    """The windows that cover a video one after another; the last one may be padded (AS, paper §4.2)."""
    offsets = range(0, len(video.times_seconds), num_steps)
    return [window_example(video, num_steps, offset)[0] for offset in offsets]


def window_example(video: VideoFrames, num_steps: int, offset: int) -> tuple[Example, np.ndarray]:
    """T consecutive frames of a video from `offset`, masked past its end, and their indices."""
    index, count = offset + np.arange(num_steps), len(video.times_seconds)
    chosen, seconds = np.minimum(index, count - 1), video.duration_seconds
    frames = video.frames[chosen]
    return Example(video_id=video.video_id, frames=frames, frame_mask=index < count, duration_seconds=seconds), chosen


def paint_steps(spans: np.ndarray, segments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(T,) class of each step, -1 background: that of the last segment which overlaps its span (T, 2) in seconds. At k
    / fps these are the rows floor(start·fps) to ceil(end·fps) that the metric paints (`evaluation.segmentation`).
    """
    labels = np.full(len(spans), -1, dtype=np.int64)
    for (start, end), class_index in zip(segments, classes, strict=True):
        labels[(spans[:, 1] > start + 1e-6) & (spans[:, 0] < end - 1e-6)] = class_index
    return labels
