"""From a file to resized frames and the row of the video: all of encoding that runs without a tower.

Nothing here imports a tower: it runs in processes that only decode.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from unloc.data.preprocess import PreprocessSpec
from unloc.data.sampling import FrameSampling
from unloc.data.tar_shards import VideoFile
from unloc.data.video import open_video
from unloc.data.video.facts import ShownFrame
from unloc.data.video.report import covered_seconds, is_truncated
from unloc.data.views import CENTRE, ViewMaker, has_crops


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """Which frames of a file are wanted, and how they are to look."""

    sampling: FrameSampling
    preprocess: PreprocessSpec
    views: tuple[str, ...] = CENTRE
    decoder: str = "auto"
    allow_partial: bool = False


@dataclass(frozen=True)
class ResizedFrame:
    """One frame as the tower takes it, but for the normalising."""

    positions: list[int]
    """Which tokens of the video it becomes: several where a short video repeats frames."""
    time_seconds: float
    """When it is really shown from."""
    pixels: np.ndarray
    """(views, 3, S, S) uint8."""


class VideoReading:
    """One file, read once: `frames`, and when they have all come, `row`."""

    def __init__(self, path: Path, spec: ReadSpec, source: VideoFile | None = None) -> None:
        """Opens the file, which is a copy of `source` where that lies in a tar file.

        Raises VideoError with a reason where it cannot be read.
        """
        started = time.perf_counter()
        self.source, self.spec = source or path, spec
        self.views = ViewMaker(spec.views, spec.preprocess, self.content_sha256 if has_crops(spec.views) else "")
        self.reader, self.facts, self.reason = open_video(path, spec.decoder, allow_partial=spec.allow_partial)
        facts = self.facts
        self.wanted_seconds = spec.sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
        self.times_seconds = np.zeros(len(self.wanted_seconds))
        self.seconds_decode, self.seconds_preprocess = time.perf_counter() - started, 0.0

    @cached_property
    def content_sha256(self) -> str:
        """Of the file, read once."""
        return file_hash(self.source)

    def frames(self) -> Iterator[ResizedFrame]:
        """Every wanted frame once, mostly in order. Raises VideoError where too little decodes."""
        shown_frames = self.reader.frames_at(self.wanted_seconds)
        while True:
            started = time.perf_counter()
            shown: ShownFrame | None = next(shown_frames, None)
            decoded = time.perf_counter()
            self.seconds_decode += decoded - started
            if shown is None:
                return
            self.times_seconds[shown.positions] = shown.time_seconds
            pixels = self.views.make(shown.image).numpy()
            self.seconds_preprocess += time.perf_counter() - decoded
            yield ResizedFrame(shown.positions, shown.time_seconds, pixels)

    def row(self, video_id: str) -> dict:
        """What the cache keeps of the video beside its tokens."""
        facts = self.facts
        return {
            "video_id": video_id,
            "file": self.source.name.encode("utf-8", "backslashreplace").decode(),
            **file_identity(self.source),
            "content_sha256": self.content_sha256,
            "duration_seconds": facts.end_seconds,
            "covered_seconds": round(covered_seconds(facts, self.reader.report), 6),
            "truncated": is_truncated(facts),
            "clock_start_seconds": round(facts.clock_start_seconds, 6),
            "times_seconds": [round(float(value), 6) for value in self.times_seconds],
            "decoder": self.reader.name,
            "decoder_reason": self.reason,
            "codec": facts.codec,
            "container": facts.container,
            "width": facts.width,
            "height": facts.height,
            "sample_aspect_ratio": str(facts.sample_aspect_ratio),
            "seconds_decode": round(self.seconds_decode, 4),
            "seconds_preprocess": round(self.seconds_preprocess, 4),
        }


def file_identity(file: VideoFile) -> dict:
    """What tells cheaply that a file has changed."""
    stat = file.stat()
    return {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}


def file_hash(file: VideoFile) -> str:
    """sha256 of the file's content."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
