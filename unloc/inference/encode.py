"""From a video file to tokens: the one path that extract workers, `--workers 0` and predict all run."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from unloc.data.cache_writer import VideoTokens, token_checksum
from unloc.data.preprocess import PreprocessSpec, normalise, resize_and_crop
from unloc.data.sampling import FrameSampling
from unloc.data.token_dtype import require_token_dtype, to_stored
from unloc.data.video import VideoFacts, open_video
from unloc.data.video.choose import Reader
from unloc.data.video.report import covered_seconds
from unloc.errors import FingerprintError, InputError, VideoError
from unloc.model.towers import BATCH, Tower, load_tower

RECORDED_VERSIONS = ("unloc", "torch", "open_clip_torch", "zarr", "decord", "av", "numpy")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Everything that decides a video's tokens, beside the file itself."""

    tower: str = "toy"
    pretrained: str | None = None
    fps: float | None = None
    num_frames: int | None = None
    dtype: str = "float16"
    """How tokens are stored: float16, float32 or bfloat16 (`token_dtype`)."""
    decoder: str = "auto"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        FrameSampling(fps=self.fps, num_frames=self.num_frames)
        require_token_dtype(self.dtype, "--dtype")

    @property
    def sampling(self) -> FrameSampling:
        """Which frames are looked at."""
        return FrameSampling(fps=self.fps, num_frames=self.num_frames)

    @classmethod
    def from_fingerprint(cls, fingerprint: dict, *, pretrained: str | None = None) -> "EncodeConfig":
        """The settings that made a cache. A tower of a weights file needs that file again: `pretrained`.

        Raises FingerprintError for a cache whose tokens no tower of ours made. That the weights are the same ones is
        known only once `Encoder(config).fingerprint` equals this one.
        """
        if "tower.name" not in fingerprint:
            origin = fingerprint.get("origin", "unknown")
            raise FingerprintError(f"its tokens were imported (origin: {origin}), not extracted: import them again")
        return cls(
            tower=fingerprint["tower.name"],
            pretrained=pretrained or fingerprint["tower.pretrained"],
            fps=fingerprint["sampling.fps"],
            num_frames=fingerprint["sampling.num_frames"],
            dtype=fingerprint["dtype"],
        )

    def to_dict(self) -> dict:
        """For pickling to workers and for records."""
        return asdict(self)


class Encoder:
    """A tower with its preprocessing, ready to encode files and texts."""

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        self.tower: Tower = load_tower(config.tower, config.pretrained)
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
            "views": ["centre"],
        }

    def encode_video(self, path: Path, video_id: str) -> VideoTokens:
        """Tokens and row of one file. Raises VideoError with a reason where it does not decode."""
        with single_threaded():
            started = time.perf_counter()
            pixels, facts, reader, times, reason = self._read(path)
            decoded = time.perf_counter()
            try:
                tokens = self._encode_pixels(pixels)
            except InputError as error:
                raise VideoError(f"{path}: {error}", reason="does_not_fit") from None
            encoded = time.perf_counter()
        meta = {
            "video_id": video_id,
            "file": path.name,
            **file_identity(path),
            "content_sha256": file_hash(path),
            "tokens_sha256": token_checksum(tokens),
            "duration_seconds": facts.end_seconds,
            "covered_seconds": round(covered_seconds(facts, reader.report), 6),
            "times_seconds": [round(float(value), 6) for value in times],
            "decoder": reader.name,
            "decoder_reason": reason,
            "codec": facts.codec,
            "container": facts.container,
            "width": facts.width,
            "height": facts.height,
            "sample_aspect_ratio": str(facts.sample_aspect_ratio),
            "seconds_decode": round(decoded - started, 4),
            "seconds_encode": round(encoded - decoded, 4),
        }
        return VideoTokens(meta, tokens)

    def _read(self, path: Path) -> tuple[list[torch.Tensor], VideoFacts, Reader, np.ndarray, str]:
        """Resized frames at all wanted times."""
        reader, facts, reason = open_video(path, self.config.decoder, allow_partial=self.config.allow_partial)
        pixels, times = self._frames(reader, facts)
        return pixels, facts, reader, times, reason

    def _frames(self, reader: Reader, facts: VideoFacts) -> tuple[list[torch.Tensor], np.ndarray]:
        wanted = self.config.sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
        pixels: list[torch.Tensor | None] = [None] * len(wanted)
        times = np.zeros(len(wanted))
        for shown in reader.frames_at(wanted):
            resized = resize_and_crop(shown.image, self.preprocess)
            for position in shown.positions:
                pixels[position], times[position] = resized, shown.time_seconds
        return pixels, times

    def _encode_pixels(self, pixels: list[torch.Tensor]) -> np.ndarray:
        """(T, views, D) in the stored dtype; a fixed batch at a time, so that memory does not grow with the video."""
        tokens = []
        for start in range(0, len(pixels), BATCH):
            images = normalise(torch.stack(pixels[start : start + BATCH]), self.preprocess)
            tokens.append(self.tower.encode_images(images).numpy())
        return to_stored(np.concatenate(tokens)[:, None], self.config.dtype)

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


def file_identity(path: Path) -> dict:
    """What tells cheaply that a file has changed."""
    stat = path.stat()
    return {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}


def file_hash(path: Path) -> str:
    """sha256 of the file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def recorded_versions() -> dict:
    """Versions that stand in the cache beside the fingerprint."""
    return {name: version(name) for name in RECORDED_VERSIONS}
