"""Where examples get frames and texts from: tokens of a cache, or pixels and token ids for towers in the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unloc.cache.reading import Cache


@dataclass(frozen=True)
class VideoFrames:
    """The frames of one video with their true times."""

    video_id: str
    frames: np.ndarray
    """(T, …) one row per frame: (T, D) tokens, or pixels."""
    times_seconds: np.ndarray
    """(T,) when each frame is shown, ascending."""
    duration_seconds: float
    """Length of the video."""

    def inputs(self, chosen: np.ndarray) -> np.ndarray:
        """These frames as the model takes them: tokens as float32, pixels as they are."""
        frames = self.frames[chosen]
        return frames if frames.dtype == np.uint8 else frames.astype(np.float32)


class Source(Protocol):
    """Frames of videos and the texts that go with them."""

    name: str
    """For messages: where it is."""

    def __contains__(self, video_id: str) -> bool: ...

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are here."""

    def video_sha256(self, video_id: str) -> str | None:
        """What identifies a video's frames, where known."""

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T, …) and times (T,) of a video. With a generator frames may be augmented."""

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Of each text its K tokens, BOS to EOS: (K, D) vectors or (K,) ids."""


class CachedTokens:
    """Tokens that `unloc extract` made."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.name = cache, str(cache.path)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.cache

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are cached."""
        return self.cache.durations_of(video_ids)

    def video_sha256(self, video_id: str) -> str | None:
        """Checksum of the video's tokens."""
        return self.cache.row(video_id).get("tokens_sha256")

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (T, D) and times (T,): view 0 (the centre crop), or with a generator a random view."""
        cached = self.cache[video_id]
        view = 0 if rng is None or len(cached.frames) == 1 else int(rng.integers(len(cached.frames)))
        return cached.frames[view], cached.times_seconds

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Tokens (K, D) of each text."""
        return self.cache.texts(texts)
