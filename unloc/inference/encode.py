"""From a video file to tokens: the one path that extract workers, `--workers 0` and predict all run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from unloc.cache.dtype import require_token_dtype, to_stored
from unloc.cache.writing import VideoTokens
from unloc.errors import FingerprintError, VideoError
from unloc.inference.batching import EncodingCall, FrameBatcher
from unloc.model.towers import TowerChoice, load_tower
from unloc.video.preprocess import CENTRE, PreprocessSpec, normalise, require_views
from unloc.video.reading import FrameSampling, ReadSpec, VideoReading


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(TowerChoice):
    """Everything that decides a video's tokens, apart from the file itself."""

    fps: float | None = None
    num_frames: int | None = None
    dtype: str = "float16"  # how tokens are stored: float16, float32 or bfloat16 (`unloc.cache.dtype`)
    views: tuple[str, ...] = CENTRE  # of a frame, those that are encoded (`unloc.video.preprocess`)
    decoder: str = "auto"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        FrameSampling(fps=self.fps, num_frames=self.num_frames)
        require_token_dtype(self.dtype, "--token-dtype")
        require_views(self.views)

    @property
    def sampling(self) -> FrameSampling:
        """Which frames are sampled."""
        return FrameSampling(fps=self.fps, num_frames=self.num_frames)

    @classmethod
    def from_fingerprint(cls, fingerprint: dict, *, pretrained: str | None = None) -> "EncodeConfig":
        """The settings that made a cache. A tower of a weights file needs that file again: `pretrained`.

        Raises FingerprintError for a cache whose tokens were imported. That the weights are the same is known only once
        `Encoder(config).fingerprint` equals this one.
        """
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
        self.tower = load_tower(self.config).to(self.device)
        self.preprocess = PreprocessSpec(**self.tower.image_config)

    @property
    def fingerprint(self) -> dict:
        """What identifies the tokens: flat, so that differences can be named key by key."""
        return {
            **{f"tower.{key}": value for key, value in self.tower.fingerprint.items()},
            **{f"preprocess.{key}": value for key, value in self.preprocess.to_dict().items()},
            **{f"sampling.{key}": value for key, value in asdict(self.config.sampling).items()},
            "dtype": self.config.dtype,
            "views": list(self.config.views),
        }

    @property
    def read_spec(self) -> ReadSpec:
        """What a process that decodes must know."""
        config = self.config
        same = {key: getattr(config, key) for key in ("sampling", "views", "decoder", "allow_partial")}
        return ReadSpec(preprocess=self.preprocess, **same)

    def encode_video(self, path: Path, video_id: str) -> VideoTokens:
        """Tokens and row of one file. Raises VideoError with a reason where it does not decode."""
        reading, batcher = VideoReading(path, self.read_spec), FrameBatcher(self)
        with single_threaded():
            for positions, pixels in reading.frames():
                batcher.add(video_id, [positions], pixels[None])
        batcher.end(video_id, reading.row(video_id))
        batcher.flush()
        ((_, result),) = batcher.take_finished()
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


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch's operators: their results may differ in the last bit between thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
