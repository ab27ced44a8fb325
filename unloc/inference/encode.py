"""From a video file to tokens: the one path that extract workers, `--workers 0` and predict all run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from unloc.cache.dtype import require_token_dtype, to_stored
from unloc.cache.reading import completed
from unloc.cache.writing import VideoTokens
from unloc.errors import FingerprintError, VideoError
from unloc.inference.batching import EncodingCall, FrameBatcher
from unloc.model.frame_tokens import CPU_BATCH, FrameTokens, resolve_dtype
from unloc.model.towers import Tower, load_tower
from unloc.video.preprocess import CENTRE, PreprocessSpec, normalise, require_views
from unloc.video.reading import ReadSpec, VideoReading
from unloc.video.sampling import FrameSampling

RECORDED_VERSIONS = ("unloc", "torch", "torchvision", "open_clip_torch", "zarr", "decord", "av", "numpy")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Everything that decides a video's tokens, beside the file itself."""

    tower: str = "toy"
    pretrained: str | None = None
    """A tag of open_clip, a weights file, or `none`: random weights."""
    like: str | None = None
    """The tag whose settings a weights file has (`towers.load_tower`)."""
    fps: float | None = None
    num_frames: int | None = None
    dtype: str = "float16"
    """How tokens are stored: float16, float32 or bfloat16 (`token_dtype`)."""
    tower_dtype: str = "float32"
    """What the image tower computes in: float32, bfloat16, or auto (`frame_tokens.resolve_dtype`)."""
    frame_token: str = "cls"
    projected: bool = True
    num_layers: int = 1
    texts_projected: bool = True
    """Which tokens the towers give (`frame_tokens.FrameTokens`)."""
    batch: int | None = None
    """Frames of one forward pass; None: as many as suit the device that encodes."""
    views: tuple[str, ...] = CENTRE
    """Which pictures of a frame are encoded (`video.preprocess`)."""
    decoder: str = "auto"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        FrameSampling(fps=self.fps, num_frames=self.num_frames)
        require_token_dtype(self.dtype, "--token-dtype")
        require_views(self.views)
        self.wanted_tokens()

    @property
    def sampling(self) -> FrameSampling:
        """Which frames are looked at."""
        return FrameSampling(fps=self.fps, num_frames=self.num_frames)

    def wanted_tokens(self) -> FrameTokens:
        """What is asked of the tower, `auto` being what is fast on this machine."""
        return FrameTokens(
            kind=self.frame_token,
            projected=self.projected,
            num_layers=self.num_layers,
            dtype=resolve_dtype(self.tower_dtype),
            texts_projected=self.texts_projected,
            batch=self.batch or CPU_BATCH,
        )

    @classmethod
    def from_fingerprint(cls, fingerprint: dict, *, pretrained: str | None = None) -> "EncodeConfig":
        """The settings that made a cache. A tower of a weights file needs that file again: `pretrained`.

        Raises FingerprintError for a cache whose tokens no tower of ours made. That the weights are the same ones is
        known only once `Encoder(config).fingerprint` equals this one.
        """
        if "tower.name" not in fingerprint:
            origin = fingerprint.get("origin", "unknown")
            raise FingerprintError(f"its tokens were imported (origin: {origin}), not extracted: import them again")
        fingerprint = completed(fingerprint)
        return cls(
            tower=fingerprint["tower.name"],
            pretrained=pretrained or fingerprint["tower.pretrained"],
            like=fingerprint["tower.like"],
            fps=fingerprint["sampling.fps"],
            num_frames=fingerprint["sampling.num_frames"],
            dtype=fingerprint["dtype"],
            tower_dtype=fingerprint["tower.dtype"],
            frame_token=fingerprint["tower.frame_token"],
            projected=fingerprint["tower.projected"],
            num_layers=fingerprint["tower.num_layers"],
            texts_projected=fingerprint["tower.texts_projected"],
            batch=fingerprint["tower.batch"],
            views=tuple(fingerprint["views"]),
        )

    def to_dict(self) -> dict:
        """For pickling to workers and for records."""
        return asdict(self)


class Encoder:
    """A tower with its preprocessing, ready to encode files and texts."""

    mixes: bool | None = None

    def __init__(self, config: EncodeConfig, device: torch.device | str = "cpu") -> None:
        wanted = config.wanted_tokens()
        self.config = replace(config, tower_dtype=wanted.dtype, batch=wanted.batch)
        self.device = torch.device(device)
        self.batch, self.batches_ahead = wanted.batch, 1 if self.device.type == "cuda" else 0
        self.tower: Tower = load_tower(config.tower, config.pretrained, wanted, like=config.like)
        self.tower.model.to(device)
        self.preprocess = PreprocessSpec(**self.tower.image_config)

    @property
    def fingerprint(self) -> dict:
        """What identifies the tokens: flat, so that differences can be named key by key."""
        tower = self.tower.spec.to_dict()
        sampling = self.config.sampling.to_dict()
        return {
            **{f"tower.{key}": value for key, value in tower.items()},
            **{f"preprocess.{key}": value for key, value in self.preprocess.to_dict().items()},
            **{f"sampling.{key}": value for key, value in sampling.items()},
            "dtype": self.config.dtype,
            "views": list(self.config.views),
        }

    @property
    def read_spec(self) -> ReadSpec:
        """What a process that decodes must know."""
        config = self.config
        return ReadSpec(
            sampling=config.sampling,
            preprocess=self.preprocess,
            views=config.views,
            decoder=config.decoder,
            allow_partial=config.allow_partial,
        )

    def encode_video(self, path: Path, video_id: str) -> VideoTokens:
        """Tokens and row of one file. Raises VideoError with a reason where it does not decode."""
        reading, batcher = VideoReading(path, self.read_spec), FrameBatcher(self, mixes=False)
        with single_threaded():
            for positions, pixels in reading.frames():
                batcher.add(video_id, [positions], pixels[None])
        batcher.end(video_id, reading.row(video_id))
        batcher.flush()
        ((_, result),) = batcher.take_finished()
        if isinstance(result, VideoError):
            raise result
        return result

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """(N, views, 3, S, S) uint8 to (N, views, D) float32."""
        return self.start_encoding(pixels)()[0]

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Begin with pixels (N, views, 3, S, S) uint8: a GPU goes on while this process does something else."""
        started = time.perf_counter()
        images = torch.from_numpy(pixels).flatten(0, 1)
        with single_threaded():
            if self.device.type == "cpu":
                tokens, done = self._tokens(images), None
            else:
                images = images.pin_memory().to(self.device, non_blocking=True)
                tokens = self._tokens(images).to("cpu", non_blocking=True)
                done = torch.cuda.Event()
                done.record()
        seconds = time.perf_counter() - started

        def wait() -> tuple[np.ndarray, float]:
            began = time.perf_counter()
            if done is not None:
                done.synchronize()
            return tokens.numpy().reshape(*pixels.shape[:2], -1), seconds + time.perf_counter() - began

        return wait

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower.encode_images(normalise(images, self.preprocess))

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


def recorded_versions() -> dict:
    """Versions that stand in the cache beside the fingerprint."""
    return {name: version(name) for name in RECORDED_VERSIONS}
