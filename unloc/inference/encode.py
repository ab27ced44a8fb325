"""From a video file to tokens: the one path that extract workers, `--workers 0` and predict all run.

Frames of many videos go into full batches of the tower. A frame's token must not depend on its place in a batch: this
is tried once, with the first batch that could be shared; where the bits differ, each batch holds one video.
"""

import copy
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from unloc.cache.dtype import STORED_DTYPES, to_stored
from unloc.cache.writing import VideoTokens, token_checksum
from unloc.callbacks import OnProgress
from unloc.errors import FingerprintError, InputError, VideoError
from unloc.inference.load import local_run
from unloc.inference.run_tower import run_tower
from unloc.model.towers import TowerChoice, load_tower
from unloc.video.preprocess import PreprocessSpec, normalise
from unloc.video.reading import FrameSampling, ReadSpec, VideoReading
from unloc.video.video_file import VideoFile

logger = logging.getLogger(__name__)
EncodingCall = Callable[[], tuple[np.ndarray, float]]  # (N, views, D) float32 tokens, and the tower's seconds for them
Keyed = tuple[Hashable, object]


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(TowerChoice, FrameSampling):
    """Everything that decides a video's tokens, apart from the file itself."""

    dtype: str = "float16"  # how tokens are stored: float16, float32 or bfloat16 (`unloc.cache.dtype`)

    def __post_init__(self) -> None:
        TowerChoice.__post_init__(self)
        FrameSampling.__post_init__(self)
        if self.dtype not in STORED_DTYPES:
            raise InputError(f"--token-dtype: got {self.dtype!r}, expected one of {', '.join(STORED_DTYPES)}")

    @classmethod
    def from_fingerprint(cls, fingerprint: dict, *, pretrained: str | None = None) -> "EncodeConfig":
        """The settings that made a cache; `pretrained`: its weights file. Raises FingerprintError: imported tokens."""
        if "tower.name" not in fingerprint:
            origin = fingerprint.get("origin", "unknown")
            raise FingerprintError(f"its tokens were imported (origin: {origin}), not extracted: import them again")
        same = ("like", "frame_token", "projected", "num_layers", "texts_projected", "batch")
        return cls(
            tower=fingerprint["tower.name"],
            pretrained=pretrained or fingerprint["tower.pretrained"],
            tower_dtype=fingerprint["tower.dtype"],
            **{key: fingerprint[f"tower.{key}"] for key in same},
            fps=fingerprint["sampling.fps"],
            num_frames=fingerprint["sampling.num_frames"],
            dtype=fingerprint["dtype"],
            views=tuple(fingerprint["views"]),
        )


class Encoder:
    """A tower with its preprocessing, ready to encode files and texts."""

    mixes: bool | None = None

    def __init__(self, config: EncodeConfig, device: torch.device | str = "cpu") -> None:
        self.config = config.resolved()
        self.device = torch.device(device)
        self.batch, self.batches_ahead = self.config.batch, 1 if self.device.type == "cuda" else 0
        run = local_run(config.tower)
        self.tower = (run_tower(run, self.config) if run.is_dir() else load_tower(self.config)).to(self.device)
        self.preprocess = PreprocessSpec(**self.tower.image_config)
        self.read_spec = ReadSpec(self.config, self.preprocess)

    @property
    def fingerprint(self) -> dict:
        """What identifies the tokens, as read back from JSON: flat, so that differences can be named key by key."""
        config, parts = self.config, {"tower": self.tower.fingerprint, "preprocess": asdict(self.preprocess)}
        parts["sampling"] = {"fps": config.fps, "num_frames": config.num_frames}
        flat = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        return json.loads(json.dumps({**flat, "dtype": config.dtype, "views": config.views}))

    def sampled(self, fps: float) -> "Encoder":
        """The same tower over so many frames per second."""
        other = copy.copy(self)
        other.config = replace(self.config, fps=fps, num_frames=None)
        other.read_spec = ReadSpec(other.config, self.preprocess)
        return other

    def encode_video(
        self,
        path: Path,
        video_id: str | None = None,
        source: VideoFile | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> VideoTokens:
        """Tokens and row of one file, by default under the sha256 of its content; `path` may be a copy of `source`.
        `on_progress` gets the frames read and all. Raises VideoError with a reason where it does not decode.
        """
        reading = VideoReading(path, self.read_spec, source)
        video_id, total = video_id or reading.content_sha256, len(reading.wanted_seconds)

        def events() -> Iterator[tuple[str, object]]:
            """As `encode_frames` takes them."""
            done = 0
            for positions, pixels in reading.frames():
                yield video_id, ([positions], pixels[None])
                done += len(positions)
                on_progress(done, total)
            yield video_id, reading.row(video_id)

        with single_threaded():
            ((_, result),) = encode_frames(self, events())
        if isinstance(result, VideoError):
            raise result
        return result

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Start to encode pixels (N, views, 3, S, S) uint8; on a GPU this does not wait for the tokens."""
        started = time.perf_counter()
        images = torch.from_numpy(pixels).flatten(0, 1)
        with single_threaded():
            if on_gpu := self.device.type != "cpu":
                images = images.pin_memory().to(self.device, non_blocking=True)
            tokens = self.tower.encode_images(normalise(images, self.preprocess)).to("cpu", non_blocking=on_gpu)
            if on_gpu:
                done = torch.cuda.Event()
                done.record()
        seconds = time.perf_counter() - started

        def wait() -> tuple[np.ndarray, float]:
            began = time.perf_counter()
            if on_gpu:
                done.synchronize()
            return tokens.numpy().reshape(*pixels.shape[:2], -1), seconds + time.perf_counter() - began

        return wait

    def encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        """(K, D) tokens of each text in the stored dtype."""
        with single_threaded():
            return [to_stored(tokens.numpy(), self.config.dtype) for tokens in self.tower.encode_texts(texts)]


class PixelEncoder(Protocol):
    """What `encode_frames` needs of an Encoder, in this process or in another."""

    batch: int  # frames that it encodes at once
    batches_ahead: int  # batches that may be running before the tokens of the first are awaited
    mixes: bool | None  # may frames of several videos share a batch? None: not tried yet

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Start to encode pixels (N, views, 3, S, S) uint8; calling the result waits for the tokens."""


@dataclass(eq=False)
class _OpenVideo:
    tokens: np.ndarray | None = None  # (capacity, views, D) as they are stored: those of hours of video fill the memory
    has_token: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # (capacity,)
    row: dict | None = None
    seconds_encode: float = 0.0
    problem: str = ""  # why its tokens cannot be stored

    def put(self, positions: list[int], token: np.ndarray) -> None:
        """Store a token (views, D) at each position."""
        if self.tokens is None:
            self.tokens = np.empty((0, *token.shape), token.dtype)
        if (missing := max(positions) + 1 - len(self.tokens)) > 0:
            capacity = len(self.tokens) + max(missing, len(self.tokens) // 8)
            self.tokens.resize((capacity, *token.shape), refcheck=False)  # in place: never held twice
            self.has_token.resize(capacity, refcheck=False)
        self.tokens[positions], self.has_token[positions] = token, True


class _Waiting(NamedTuple):
    video: _OpenVideo
    positions: list[int]
    pixels: np.ndarray


def encode_frames(encoder: PixelEncoder, events: Iterable[Keyed]) -> Iterator[Keyed]:
    """(key, VideoTokens) of each video as soon as it is complete; or VideoError where they do not fit the dtype.

    Events name a video by any key, one after another: `(positions, pixels)`, some frames (F, views, 3, S, S) uint8 and
    which tokens each becomes; then its row, with the time of every token. Others discard its frames and are passed on.
    """
    videos: dict[Hashable, _OpenVideo] = {}
    waiting: list[_Waiting] = []
    running: deque[tuple[list[_Waiting], EncodingCall]] = deque()

    def encode_waiting(batches_ahead: int) -> None:
        """Also wait for tokens until at most so many batches are running."""
        if waiting:
            running.append((list(waiting), encoder.start_encoding(np.stack([frame.pixels for frame in waiting]))))
            waiting.clear()
        while len(running) > batches_ahead:
            frames, call = running.popleft()
            tokens, seconds = call()
            for frame, token in zip(frames, tokens, strict=True):
                try:
                    frame.video.put(frame.positions, to_stored(token, encoder.config.dtype))
                except InputError as error:
                    frame.video.put(frame.positions, np.zeros(token.shape, STORED_DTYPES[encoder.config.dtype]))
                    frame.video.problem = str(error)
                frame.video.seconds_encode += seconds / len(frames)

    def finished() -> Iterator[Keyed]:
        """Videos of which all tokens have arrived."""
        for key, video in list(videos.items()):
            if video.row is not None and video.has_token.sum() >= len(video.row["times_seconds"]):
                del videos[key]
                stored = video.tokens[: video.has_token.sum()]
                if video.problem:
                    yield key, VideoError(f"{video.row['file']}: {video.problem}", reason="does_not_fit")
                else:
                    added = {"tokens_sha256": token_checksum(stored), "seconds_encode": round(video.seconds_encode, 4)}
                    yield key, VideoTokens(video.row | added, stored)

    for key, event in events:
        match event:
            case (positions, pixels):
                video = videos.setdefault(key, _OpenVideo())
                is_shared = waiting and waiting[-1].video is not video
                if is_shared and not may_mix(encoder, [frame.pixels for frame in waiting]):
                    encode_waiting(encoder.batches_ahead)
                for places, image in zip(positions, pixels, strict=True):
                    waiting.append(_Waiting(video, places, image))
                    if len(waiting) == encoder.batch:
                        encode_waiting(encoder.batches_ahead)
            case dict():
                videos[key].row = event
            case _:
                dropped = videos.pop(key, None)
                waiting[:] = [frame for frame in waiting if frame.video is not dropped]
                yield key, event
        yield from finished()
    encode_waiting(0)
    yield from finished()


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


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch's operators: their results may differ in the last bit between thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
