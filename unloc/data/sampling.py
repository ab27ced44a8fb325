"""Which moments of a video are looked at: by seconds, or a number of frames evenly over it (paper §4.2)."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from unloc.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """Exactly one of frames per second, or a number of frames."""

    fps: float | None = None
    """Frames per second of video, from its first moment on."""
    num_frames: int | None = None
    """Frames evenly from the first to the last frame, both included; short videos repeat frames."""

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.num_frames is None):
            raise InputError("sampling: give either --fps or --frames, not both and not neither")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"--fps: got {self.fps}, expected a positive number of frames per second")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"--frames: got {self.num_frames}, expected at least 1")

    def times(self, first_seconds: float, last_seconds: float, end_seconds: float) -> np.ndarray:
        """Wanted times in seconds, rising, for a video whose first and last frame begin at first and last.

        By fps: first + k / fps while before the end of the last frame. By number: evenly from first to last.
        """
        if self.num_frames is not None:
            return np.linspace(first_seconds, last_seconds, self.num_frames)
        count = max(1, math.ceil((end_seconds - first_seconds) * self.fps - 1e-6))
        return first_seconds + np.arange(count) / self.fps

    def to_dict(self) -> dict:
        """For the fingerprint."""
        return asdict(self)
