"""Level-0 steps of one example: which frames it has, and which seconds of the video each step covers.

Steps spread evenly over the video or a crop of it (paper §4.2, as the official code) map onto seconds by a `TimeGrid`.
Consecutive frames (AS) are not evenly spaced, as a frame rate need not divide the sampling rate: see `token_spans`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """Affine map between level-0 steps and seconds."""

    start_seconds: float  # time of step 0
    seconds_per_step: float  # distance of neighbouring steps, > 0

    def to_steps(self, seconds: np.ndarray) -> np.ndarray:
        """Times in seconds as (fractional) steps."""
        return (np.asarray(seconds, dtype=np.float64) - self.start_seconds) / self.seconds_per_step

    def to_seconds(self, steps: np.ndarray) -> np.ndarray:
        """Steps as times in seconds."""
        return self.start_seconds + np.asarray(steps, dtype=np.float64) * self.seconds_per_step


def linspace_steps(
    times_seconds: np.ndarray,
    num_steps: int,
    *,
    crop: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
    pick: str = "nearest",
) -> tuple[TimeGrid, np.ndarray]:
    """T steps evenly over the frames' times, or over a crop (start, end) of them.

    Returns the grid and, for each step, the index of its frame; with `rng` that of a random time within half a step
    (training jitter). `pick` nearest: the frame nearest in time. `pick` floor: frame floor(i (N-1) / (T-1)) of N for
    step i, as the official code counts stored frames. Short videos repeat frames instead of padding (official).
    """
    start, end = crop or (float(times_seconds[0]), float(times_seconds[-1]))
    spacing = (end - start) / max(num_steps - 1, 1)
    spacing = spacing if spacing > 0 else 1.0  # of a single frame any positive spacing is right
    wanted = start + spacing * np.arange(num_steps)
    if rng is not None:
        wanted = wanted + spacing * rng.uniform(-0.5, 0.5, num_steps)
    grid = TimeGrid(start, spacing)
    if pick == "nearest":
        return grid, nearest_index(times_seconds, wanted)
    if crop is None and rng is None:  # by count: the times of real frames are not exactly even
        return grid, np.linspace(0, len(times_seconds) - 1, num_steps).astype(np.int64)
    return grid, np.clip(np.searchsorted(times_seconds, wanted + 1e-6, side="right") - 1, 0, len(times_seconds) - 1)


def nearest_index(times_seconds: np.ndarray, wanted_seconds: np.ndarray) -> np.ndarray:
    """Index of the nearest time for each wanted one (the earlier on a tie); times must be sorted."""
    last = len(times_seconds) - 1
    right = np.clip(np.searchsorted(times_seconds, wanted_seconds), min(1, last), last)
    left = np.maximum(right - 1, 0)
    closer_right = times_seconds[right] - wanted_seconds < wanted_seconds - times_seconds[left]
    return np.where(closer_right, right, left)


def token_spans(times_seconds: np.ndarray, duration_seconds: float) -> np.ndarray:
    """(T, 2) seconds: each frame covers the video from its time until the next later one. The first span begins with
    the video, the last ends with it. A repeated frame (equal times) shares its span.
    """
    following = np.searchsorted(times_seconds, times_seconds, side="right")
    ends = np.append(times_seconds, max(duration_seconds, float(times_seconds[-1])))[following]
    return np.stack([np.where(times_seconds == times_seconds[0], 0.0, times_seconds), ends], axis=1)


def at_distinct_times(times_seconds: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising times, and the scores (T, C) at each; those of a repeated frame are averaged."""
    distinct, first, counts = np.unique(times_seconds, return_index=True, return_counts=True)
    return distinct, np.add.reduceat(scores, first, axis=0) / counts[:, None]
