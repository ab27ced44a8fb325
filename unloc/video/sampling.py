"""The times at which a video is sampled: at a rate, or a number of frames evenly over it (paper §4.2)."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from unloc.errors import InputError

MAX_FPS, MAX_FRAMES = 1000, 1_000_000  # more is a typing error, which would fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """Exactly one of a rate and a number of frames."""

    fps: float | None = None
    """Frames per second of video, from its first moment on."""
    num_frames: int | None = None
    """Frames evenly from the first to the last frame, both included; short videos repeat frames."""

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.num_frames is None):
            raise InputError("sampling: give exactly one of --fps and --frames")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise InputError(f"--fps: got {self.fps}, expected a positive number of frames per second, to {MAX_FPS}")
        if self.num_frames is not None and not 1 <= self.num_frames <= MAX_FRAMES:
            raise InputError(f"--frames: got {self.num_frames}, expected 1 to {MAX_FRAMES}")

    def times(self, first_seconds: float, last_seconds: float, end_seconds: float) -> np.ndarray:
        """Rising times in seconds for a video whose first and last frame begin at first_seconds and last_seconds.

        By fps: first + k / fps while before the end of the last frame. By number: evenly from first to last.
        """
        if self.num_frames is not None:
            return np.linspace(first_seconds, last_seconds, self.num_frames)
        count = max(1, math.ceil((end_seconds - first_seconds) * self.fps - 1e-6))
        return first_seconds + np.arange(count) / self.fps

    def to_dict(self) -> dict:
        """For the fingerprint."""
        return asdict(self)
