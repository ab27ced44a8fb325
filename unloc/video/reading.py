"""From a file to resized frames and the row of the video: all of encoding that runs without a tower.

Nothing here imports a tower: it runs in processes that only decode.
"""

import hashlib
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from unloc.errors import VideoError
from unloc.video.choose import open_video
from unloc.video.facts import Progress, ShownFrame, no_report
from unloc.video.preprocess import PreprocessSpec
from unloc.video.remote_video import RemoteVideo
from unloc.video.report import covered_seconds, is_truncated
from unloc.video.sampling import FrameSampling
from unloc.video.tar_shards import TarMember, VideoFile
from unloc.video.views import CENTRE, ViewMaker, has_crops

CHANGED = "changed"  # reason of a video whose file was another one at the end than at the start
HASH_BLOCK = 1 << 20


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

    def __init__(
        self, path: Path, spec: ReadSpec, source: VideoFile | None = None, on_progress: Progress = no_report
    ) -> None:
        """Opens the file, which is a copy of `source` where that lies in a tar file.

        Raises VideoError with a reason where it cannot be read.
        """
        started = time.perf_counter()
        self.path, self.source, self.spec, self.on_progress = path, source or path, spec, on_progress
        self.version = file_version(path)
        self.views = ViewMaker(spec.views, spec.preprocess, self.content_sha256 if has_crops(spec.views) else "")
        self.reader, self.facts, self.reason = open_video(
            path, spec.decoder, allow_partial=spec.allow_partial, on_progress=on_progress
        )
        facts = self.facts
        self.wanted_seconds = spec.sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
        self.times_seconds = np.zeros(len(self.wanted_seconds))
        self.seconds_decode, self.seconds_preprocess = time.perf_counter() - started, 0.0

    @cached_property
    def content_sha256(self) -> str:
        """Of the file that is decoded, read once."""
        return file_hash(self.path, self.on_progress)

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
        """What the cache keeps of the video beside its tokens.

        Raises VideoError (reason `changed`) where the file is not the one any more that was opened.
        """
        facts = self.facts
        row = {
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
        if file_version(self.path) != self.version:
            raise VideoError(f"{self.source}: the file changed while it was decoded; run again", reason=CHANGED)
        return row


def file_identity(file: VideoFile) -> dict:
    """What tells cheaply that a file has changed; nothing where it cannot be asked."""
    try:
        stat = file.stat()
    except OSError:
        return {}
    return {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}


def file_version(file: VideoFile) -> Hashable | None:
    """What no change of a file leaves as it was: size, times of writing and of any change; None where it is not.

    Of a video in a tar file, those of the tar file; at a URL, what its store says now.
    """
    try:
        if isinstance(file, RemoteVideo):
            return file.current()
        stat = (file.tar if isinstance(file, TarMember) else file).stat()
    except (OSError, VideoError):
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_hash(file: VideoFile, on_progress: Progress = no_report) -> str:
    """sha256 of the file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
            on_progress()
    return digest.hexdigest()
