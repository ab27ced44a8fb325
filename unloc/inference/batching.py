"""Frames of many videos into full batches of the tower, and the tokens back to their videos.

A short video alone would leave most of its last batch empty. Which place in a batch a frame takes must not change its
token: that is tried once, with the first batch that could be shared, and where the bits differ nothing is shared.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unloc.cache.dtype import to_stored
from unloc.cache.writing import VideoTokens, token_checksum
from unloc.errors import InputError, VideoError

logger = logging.getLogger(__name__)


class PixelEncoder(Protocol):
    """What the batcher needs of an Encoder, in this process or in another."""

    batch: int
    """Frames that it takes at once."""
    batches_ahead: int
    """Batches that may be on their way before the tokens of the first are waited for."""
    mixes: bool | None
    """May frames of several videos share a batch? None: as a trial says (`is_same_in_any_place`)."""

    def start_encoding(self, pixels: np.ndarray) -> "EncodingCall":
        """Begin with pixels (N, views, 3, S, S) uint8; calling the answer waits for the tokens."""


EncodingCall = Callable[[], tuple[np.ndarray, float]]
"""Gives (N, views, D) float32 tokens and the seconds that the tower took for them."""


@dataclass(eq=False)
class _OpenVideo:
    tokens: list[np.ndarray | None]
    """(views, D) of each position, once encoded."""
    num_missing: int
    row: dict | None = None
    seconds_encode: float = 0.0


@dataclass(eq=False)
class _Waiting:
    video: _OpenVideo
    positions: list[int]
    pixels: np.ndarray


class FrameBatcher:
    """Call `begin`, `add` … `end` (or `drop`) per video; `take_finished` gives what is complete."""

    def __init__(self, encoder: PixelEncoder, *, mixes: bool | None = None) -> None:
        """`mixes`: may frames of several videos share a batch? None: as the encoder says."""
        self.encoder, self.mixes = encoder, encoder.mixes if mixes is None else mixes
        self._open: dict[str, _OpenVideo] = {}
        self._waiting: list[_Waiting] = []
        self._running: deque[tuple[list[_Waiting], EncodingCall]] = deque()

    def begin(self, video_id: str, num_tokens: int) -> None:
        """A video of which this many tokens are wanted."""
        self._open[video_id] = _OpenVideo([None] * num_tokens, num_tokens)

    def add(self, video_id: str, positions: list[list[int]], pixels: np.ndarray) -> None:
        """Frames (F, views, 3, S, S) uint8 of a video, and which of its tokens each becomes."""
        for places, image in zip(positions, pixels, strict=True):
            self._waiting.append(_Waiting(self._open[video_id], places, image))
            if len(self._waiting) == self.encoder.batch:
                self._start()

    def end(self, video_id: str, row: dict) -> None:
        """No more frames of this video will come."""
        self._open[video_id].row = row
        if self._waiting and not self._may_mix():
            self._start()

    def drop(self, video_id: str) -> None:
        """Forget a video whose decoding failed."""
        dropped = self._open.pop(video_id, None)
        self._waiting = [frame for frame in self._waiting if frame.video is not dropped]

    def flush(self) -> None:
        """Encode what waits, though the batch is not full, and wait for all tokens."""
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
            for position in frame.positions:
                frame.video.tokens[position] = token
            frame.video.num_missing -= len(frame.positions)
            frame.video.seconds_encode += seconds / len(frames)

    def take_finished(self) -> list[tuple[str, VideoTokens | VideoError]]:
        """(id, tokens) of videos that are complete, each once.

        A VideoError (reason `does_not_fit`) stands for tokens that the stored dtype cannot hold.
        """
        done = [name for name, video in self._open.items() if video.row is not None and video.num_missing == 0]
        return [(name, self._finish(self._open.pop(name))) for name in done]

    def _finish(self, video: _OpenVideo) -> VideoTokens | VideoError:
        try:
            tokens = to_stored(np.stack(video.tokens), self.encoder.config.dtype)
        except InputError as error:
            return VideoError(f"{video.row['file']}: {error}", reason="does_not_fit")
        timed = {"tokens_sha256": token_checksum(tokens), "seconds_encode": round(video.seconds_encode, 4)}
        return VideoTokens(video.row | timed, tokens)

    def _may_mix(self) -> bool:
        if self.mixes is None:
            self.mixes = is_same_in_any_place(self.encoder, np.stack([frame.pixels for frame in self._waiting]))
            if not self.mixes:
                logger.warning("this tower's tokens depend on their place in a batch: batches hold one video each")
        return self.mixes


def is_same_in_any_place(encoder: PixelEncoder, pixels: np.ndarray) -> bool:
    """Are the tokens of these pixels (fewer than a batch) the same bits at the end of a batch as at its start?"""
    shifted = np.concatenate([np.zeros_like(pixels[:1]).repeat(encoder.batch - len(pixels), 0), pixels])
    alone, behind_others = (encoder.start_encoding(given)()[0] for given in (pixels, shifted))
    return np.array_equal(alone, behind_others[-len(pixels) :])
