"""From a file to resized frames and the video's row: all of encoding without a tower, which decoders do not import."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unloc.callbacks import Heartbeat
from unloc.errors import InputError, VideoError
from unloc.files import file_identity
from unloc.video.decord_reader import DecordReader, unsound_by_facts
from unloc.video.facts import scan
from unloc.video.preprocess import CENTRE, VIEW_NAME, PreprocessSpec, make_views
from unloc.video.pyav_reader import PyAVReader
from unloc.video.video_file import VideoFile, file_hash, file_version

READERS = {"auto": PyAVReader, "decord": DecordReader, "pyav": PyAVReader}
MAX_FPS, MAX_FRAMES = 1000, 1_000_000  # more is a typing error, which would fill the memory
CHANGED = "changed"  # reason of a video whose file was replaced or rewritten while it was read


def open_video(
    path: Path, decoder: str = "auto", allow_partial: bool = False, on_progress: Heartbeat = lambda: None
) -> PyAVReader:
    """A reader of the file; `auto` is PyAV: exact and faster (benchmarks/decoding.py). Raises VideoError."""
    if decoder not in READERS:
        raise InputError(f"--decoder: got {decoder!r}, expected one of {', '.join(READERS)}")
    facts = scan(path, on_progress)
    reader = READERS[decoder](facts, allow_partial, on_progress)
    if decoder == "auto":
        unsound = unsound_by_facts(facts)
        reader.reason = f"decord is not exact here: {unsound}" if unsound else "decord would be exact; PyAV is faster"
    return reader


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Which frames of a file are read (exactly one of a rate and a number), which views of them, by which decoder."""

    fps: float | None = None  # frames per second of video, from its first moment on
    num_frames: int | None = None  # evenly from the first to the last frame, both included; short videos repeat frames
    views: tuple[str, ...] = CENTRE  # of a frame (`unloc.video.preprocess`)
    decoder: str = "auto"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.num_frames is None):
            raise InputError("sampling: give exactly one of --fps and --frames")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise InputError(f"--fps: got {self.fps}, expected a positive number of frames per second, to {MAX_FPS}")
        if self.num_frames is not None and not 1 <= self.num_frames <= MAX_FRAMES:
            raise InputError(f"--frames: got {self.num_frames}, expected 1 to {MAX_FRAMES}")
        views = self.views
        if views[:1] != CENTRE or len(set(views)) < len(views) or not all(map(VIEW_NAME.fullmatch, views)):
            expected = "centre, which evaluation reads, then flip and crops with different numbers (crop0)"
            raise InputError(f"--views: got {','.join(views)!r}, expected {expected}")

    def times(self, first_seconds: float, last_seconds: float, end_seconds: float) -> np.ndarray:
        """Rising: first + k / fps while before the end of the last frame, or evenly from first to last frame."""
        if self.num_frames is not None:
            return np.linspace(first_seconds, last_seconds, self.num_frames)
        count = max(1, math.ceil((end_seconds - first_seconds) * self.fps - 1e-6))
        return first_seconds + np.arange(count) / self.fps


class ReadSpec(NamedTuple):
    """What a process that decodes must know."""

    sampling: FrameSampling
    preprocess: PreprocessSpec


class VideoReading:
    """One file, read once: `frames`, and after the last of them `row`."""

    def __init__(
        self, path: Path, spec: ReadSpec, source: VideoFile | None = None, on_progress: Heartbeat = lambda: None
    ) -> None:
        """Opens the file, a copy of `source` where that is not local. Raises VideoError with a reason."""
        started = time.perf_counter()
        self.path, self.source, self.spec, self.version = path, source or path, spec, file_version(path)
        self.reader = open_video(path, spec.sampling.decoder, spec.sampling.allow_partial, on_progress)
        facts = self.reader.facts
        self.wanted_seconds = spec.sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
        self.times_seconds = np.zeros(len(self.wanted_seconds))
        self.seconds_decode, self.seconds_preprocess = time.perf_counter() - started, 0.0
        self.content_sha256 = file_hash(path, on_progress)

    def frames(self) -> Iterator[tuple[list[int], np.ndarray]]:
        """Every wanted frame once, mostly in order: (positions, pixels). Raises VideoError where too little decodes.

        positions: which tokens of the video the frame becomes, several where a short video repeats frames;
        pixels: (views, 3, S, S) uint8, ready for a tower but for normalising.
        """
        (sampling, preprocess), shown_frames = self.spec, self.reader.frames_at(self.wanted_seconds)
        while True:
            started = time.perf_counter()
            shown = next(shown_frames, None)
            decoded = time.perf_counter()
            self.seconds_decode += decoded - started
            if shown is None:
                return
            self.times_seconds[shown.positions] = shown.time_seconds
            pixels = make_views(shown.image, sampling.views, preprocess, self.content_sha256).numpy()
            self.seconds_preprocess += time.perf_counter() - decoded
            yield shown.positions, pixels

    def row(self, video_id: str) -> dict:
        """What the cache keeps of the video. Raises VideoError (reason `changed`) where the file has changed since."""
        facts = self.reader.facts
        row = {
            "video_id": video_id,
            "file": self.source.name.encode("utf-8", "backslashreplace").decode(),
            **file_identity(self.source),
            "content_sha256": self.content_sha256,
            "duration_seconds": facts.end_seconds,
            "covered_seconds": round(self.reader.covered_seconds(), 6),
            "truncated": facts.is_truncated,
            "clock_start_seconds": round(facts.clock_start_seconds, 6),
            "times_seconds": [round(float(value), 6) for value in self.times_seconds],
            "decoder": self.reader.name,
            "decoder_reason": self.reader.reason,
            **{key: getattr(facts, key) for key in ("codec", "container", "width", "height")},
            "sample_aspect_ratio": str(facts.sample_aspect_ratio),
            "seconds_decode": round(self.seconds_decode, 4),
            "seconds_preprocess": round(self.seconds_preprocess, 4),
        }
        if file_version(self.path) != self.version:
            raise VideoError(f"{self.source}: the file changed while it was decoded; run again", reason=CHANGED)
        return row
