"""Sources of pixels, for an image tower in the model: packed frames, or video files decoded at each use."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unloc.errors import CacheError, MissingError
from unloc.examples.augment import ClipTransform
from unloc.examples.sources import Tokenize, token_ids
from unloc.video.facts import scan
from unloc.video.frame_shards import FrameSpec, packed_videos, read_frames, sampled_frames
from unloc.video.video_file import VideoFile, file_hash, on_disk


@dataclass(frozen=True)
class ClipFrames:
    """The frames of one video, read and transformed where they are indexed: `frames[indices]` is (N, 3, H, W) uint8."""

    count: int
    read: Callable[[np.ndarray], np.ndarray]
    transform: Callable[[Tensor], Tensor]
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.transform(torch.from_numpy(self.read(indices))).numpy()


class PixelSource:
    """What sources of pixels share: videos by id, clips as a transform makes them, and texts as ids."""

    def __init__(self, folder: Path, videos: dict, tokenize: Tokenize, transform: ClipTransform) -> None:
        self.name, self.videos, self.transform = str(folder), videos, transform
        self.texts = partial(token_ids, tokenize)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.videos

    def clip(
        self, row: dict, read: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator | None
    ) -> tuple[ClipFrames, np.ndarray]:
        """Frames and times of a video; one draw from `rng` decides its augmentation, however often it is read."""
        seed, times = None if rng is None else int(rng.integers(2**63)), np.asarray(row["times_seconds"], np.float64)

        def transform(frames: Tensor) -> Tensor:
            return self.transform(frames, row["video_id"], None if seed is None else np.random.default_rng(seed))

        return ClipFrames(len(times), read, transform), times


class FrameShards(PixelSource):
    """Frames that `unloc data pack --frames` made. Frames that an example does not use are neither read nor decoded."""

    def __init__(self, folder: Path, tokenize: Tokenize, transform: ClipTransform) -> None:
        """Raises MissingError where the folder has no shards, CacheError where a shard is not what its index says."""
        super().__init__(folder, packed_videos(folder), tokenize, transform)
        packings = {tuple((key, row[key]) for key in ("num_frames", "fps", "size")) for _, row in self.videos.values()}
        if len(packings) > 1:
            raise CacheError(f"{folder}: has shards of different packings; pack all videos alike, into a new folder")
        self.packing: dict[str, float | None] = dict(*packings)  # `num_frames` or `fps`, and `size`, of all videos

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are packed."""
        return {key: self.videos[key][1]["duration_seconds"] for key in video_ids if key in self.videos}

    def video_sha256(self, video_id: str) -> str | None:
        """Checksum of the video's file and of how it was packed."""
        row = self.videos[video_id][1]
        identity = [row[key] for key in ("content_sha256", "fps", "num_frames", "size", "times_seconds")]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[ClipFrames, np.ndarray]:
        """Frames (T, 3, H, W) and times (T,) of a video."""
        shard, row = self.videos[video_id]
        return self.clip(row, partial(read_frames, shard, row), rng)


class VideoFiles(PixelSource):
    """The same from video files: each use of a video decodes all of its sampled frames again, into memory."""

    def __init__(
        self, folder: Path, files: dict[str, VideoFile], spec: FrameSpec, tokenize: Tokenize, transform: ClipTransform
    ) -> None:
        """`files`: as `VideoIndex.locate` finds them in the folder. Raises MissingError where there is none."""
        super().__init__(folder, files, tokenize, transform)
        if not files:
            raise MissingError(f"{folder}: has none of the manifest's videos")
        self.spec = spec

    def cost(self) -> str:
        """What decoding costs, measured on the first video. Raises VideoError where it does not decode."""
        (video_id, file), started = next(iter(self.videos.items())), time.perf_counter()
        _, frames = sampled_frames(video_id, file, self.spec)
        megabytes = sum(frame.nbytes for frame in frames) / 1e6
        cost = f"{time.perf_counter() - started:.1f} s and {megabytes:.0f} MB for {len(frames)} frames"
        what = f"{len(self.videos)} video files, decoded at each use: {video_id} takes {cost}"
        return f"{self.name}: {what}; `unloc data pack --frames` decodes each video once"

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that have a file. Raises VideoError where one cannot be read."""
        durations = {}
        for video_id in filter(self.videos.__contains__, video_ids):
            with on_disk(self.videos[video_id]) as path:
                durations[video_id] = scan(path).end_seconds
        return durations

    def video_sha256(self, video_id: str) -> str | None:
        """Checksum of the video's file."""
        return file_hash(self.videos[video_id])

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[ClipFrames, np.ndarray]:
        """Frames (T, 3, H, W) and times (T,) of a video. Raises VideoError where it does not decode."""
        row, frames = sampled_frames(video_id, self.videos[video_id], self.spec)
        return self.clip(row, np.stack(frames).__getitem__, rng)
