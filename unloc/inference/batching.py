"""Frames of many videos in full batches of the tower, and the tokens back to their videos.

A short video alone would leave most of its last batch empty. A frame's token must not depend on its place in a batch:
this is tried once, with the first batch that could be shared; where the bits differ, each batch holds one video.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from unloc.cache.dtype import to_stored
from unloc.cache.writing import VideoTokens, token_checksum
from unloc.errors import InputError, VideoError

logger = logging.getLogger(__name__)
EncodingCall = Callable[[], tuple[np.ndarray, float]]
"""Returns (N, views, D) float32 tokens and the seconds that the tower took for them."""


class PixelEncoder(Protocol):
    """What the batcher needs of an Encoder, in this process or in another."""

    batch: int  # frames that it encodes at once
    batches_ahead: int  # batches that may be running before the tokens of the first are awaited
    mixes: bool | None  # may frames of several videos share a batch? None: not tried yet

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Start to encode pixels (N, views, 3, S, S) uint8; calling the result waits for the tokens."""


@dataclass(eq=False)
class _OpenVideo:
    tokens: dict[int, np.ndarray] = field(default_factory=dict)  # (views, D) of each position encoded so far
    row: dict | None = None
    seconds_encode: float = 0.0


class _Waiting(NamedTuple):
    video: _OpenVideo
    positions: list[int]
    pixels: np.ndarray


class FrameBatcher:
    """For each video call `add` … and `end` (or `drop`), one after another; `take_finished` returns the complete ones.

    A video is named by any key, such as its id.
    """

    def __init__(self, encoder: PixelEncoder) -> None:
        self.encoder = encoder
        self._open: dict[Hashable, _OpenVideo] = {}
        self._waiting: list[_Waiting] = []
        self._running: deque[tuple[list[_Waiting], EncodingCall]] = deque()

    def add(self, key: Hashable, positions: list[list[int]], pixels: np.ndarray) -> None:
        """Frames (F, views, 3, S, S) uint8 of a video, and which of its tokens each becomes."""
        video = self._open.setdefault(key, _OpenVideo())
        is_shared = self._waiting and self._waiting[-1].video is not video
        if is_shared and not may_mix(self.encoder, [frame.pixels for frame in self._waiting]):
            self._start()
        for places, image in zip(positions, pixels, strict=True):
            self._waiting.append(_Waiting(video, places, image))
            if len(self._waiting) == self.encoder.batch:
                self._start()

    def end(self, key: Hashable, row: dict) -> None:
        """All frames of this video were added; `row["times_seconds"]` has the time of every token."""
        self._open[key].row = row

    def drop(self, key: Hashable) -> None:
        """Forget a video whose decoding failed."""
        dropped = self._open.pop(key, None)
        self._waiting = [frame for frame in self._waiting if frame.video is not dropped]

    def flush(self) -> None:
        """Encode the waiting frames in a batch that is not full, and wait for all tokens."""
        if self._waiting:
            self._start()
        while self._running:
            self._collect()

    def _start(self) -> None:
        call = self.encoder.start_encoding(np.stack([frame.pixels for frame in self._waiting]))
        self._running.append((self._waiting, call))
        self._waiting = []
        while len(self._running) > self.encoder.batches_ahead:
            self._collect()

    def _collect(self) -> None:
        frames, call = self._running.popleft()
        tokens, seconds = call()
        for frame, token in zip(frames, tokens, strict=True):
            frame.video.tokens |= dict.fromkeys(frame.positions, token)
            frame.video.seconds_encode += seconds / len(frames)

    def take_finished(self) -> list[tuple[Hashable, VideoTokens | VideoError]]:
        """(key, tokens) of the videos that are complete, each once.

        A VideoError (reason `does_not_fit`) replaces tokens that do not fit the stored dtype.
        """
        finished = []
        for key, video in list(self._open.items()):
            if video.row is None or len(video.tokens) < len(video.row["times_seconds"]):
                continue
            del self._open[key]
            tokens = np.stack([video.tokens[position] for position in range(len(video.tokens))])
            try:
                stored = to_stored(tokens, self.encoder.config.dtype)
            except InputError as error:
                finished.append((key, VideoError(f"{video.row['file']}: {error}", reason="does_not_fit")))
                continue
            added = {"tokens_sha256": token_checksum(stored), "seconds_encode": round(video.seconds_encode, 4)}
            finished.append((key, VideoTokens(video.row | added, stored)))
        return finished


def may_mix(encoder: PixelEncoder, frames: Sequence[np.ndarray]) -> bool:
    """`encoder.mixes`, tried with frames (fewer than a batch): the same bits at the end of a batch as at its start?"""
    if encoder.mixes is None:
        pixels = np.stack(frames)
        shifted = np.concatenate([np.zeros_like(pixels[:1]).repeat(encoder.batch - len(pixels), 0), pixels])
        alone, behind_others = (encoder.start_encoding(given)()[0] for given in (pixels, shifted))
        encoder.mixes = np.array_equal(alone, behind_others[-len(pixels) :])
        if not encoder.mixes:
            logger.warning("tokens of this tower depend on their place in a batch: each batch holds one video")
    return encoder.mixes
