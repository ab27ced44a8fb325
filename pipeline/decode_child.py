"""The process that decodes: jobs come in through a pipe, resized frames go back; it may crash or hang at any moment.

Crashes, hangs and leaks of a decoder stay in this process, away from the tower. The pipe holds a few frames at a time,
so memory does not grow with the length of a video.
"""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import torch

from unloc.cache.shards import Failure
from unloc.errors import VideoError
from unloc.video.reading import CHANGED, ReadSpec, VideoReading
from unloc.video.video_file import RemoteVideo, VideoFile, file_identity, file_version, on_disk

FRAMES_PER_MESSAGE = 16
HEARTBEAT_SECONDS = 0.1
MAX_CHANGES = 3  # times that a file may change while it is decoded
MACHINE = "machine"  # reason of a Failure that is not the video's fault: a file could not be read or written here
PYTHON_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
DECODING_ERRORS = (*PYTHON_ERRORS, MemoryError, OSError, av.error.FFmpegError)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One video to encode."""

    video_id: str
    path: VideoFile


@dataclass(frozen=True)
class Frames:
    """Some frames of the video."""

    positions: list[list[int]]
    """For each frame, which tokens it becomes."""
    pixels: np.ndarray
    """(F, views, 3, S, S) uint8."""


@dataclass(frozen=True)
class Ended:
    """All frames were sent."""

    row: dict
    grown_bytes: int
    """By how much the resident memory of the process has grown since its start."""


@dataclass(frozen=True)
class Retried:
    """The video starts again, because its decoder died or its file changed; discard the frames sent so far."""


@dataclass(frozen=True)
class Alive:
    """The process makes progress."""

    is_fetching: bool = False
    """Is it downloading the video?"""


Message = Frames | Ended | Failure | Retried | Alive


class _Heartbeat:
    """Reports progress every HEARTBEAT_SECONDS; called from inside the reading, so that a hang is silent."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.is_fetching, self.sent_at = connection, False, 0.0

    def __call__(self) -> None:
        if time.monotonic() - self.sent_at > HEARTBEAT_SECONDS:
            self.send(Alive(self.is_fetching))

    def send(self, message: Message) -> None:
        self.connection.send(message)
        self.sent_at = time.monotonic()


def run_child(parents_end: Connection, connection: Connection, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    """Decode jobs until the pipe is closed. The first message says that the process is ready."""
    parents_end.close()  # otherwise the pipe never closes: this process would hold both its ends
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung decoder must not outlive its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    # A limit on memory makes allocations fail, as one video's error, before the system starts to kill processes.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _memory("VmData") + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    heartbeat, rss_at_start = _Heartbeat(connection), _memory("VmRSS")
    try:
        heartbeat.send(Alive())
        while True:
            for message in _messages(connection.recv(), spec, heartbeat, rss_at_start):
                heartbeat.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended, or closed the pipe


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _messages(job: Job, spec: ReadSpec, heartbeat: _Heartbeat, rss_at_start: int) -> Iterator[Message]:
    """All messages about one job. A file that changes while it is read is read again."""
    for _ in range(MAX_CHANGES):
        file = job.path
        version, identity = file_version(file), file_identity(file)
        heartbeat.is_fetching = isinstance(file, RemoteVideo)
        try:
            if isinstance(file, RemoteVideo):
                yield Alive(is_fetching=True)
                version = file = file.current()
                identity = file_identity(file)
            with on_disk(file, heartbeat) as path:
                heartbeat.is_fetching = False
                yield Alive()
                reading = VideoReading(path, spec, file, heartbeat)
                yield from _frames(reading, heartbeat)
                last = Ended(reading.row(job.video_id), _memory("VmRSS") - rss_at_start)
        except DECODING_ERRORS as error:
            last = Failure(job.video_id, *_reason(job, error), **identity)
        if file_version(file) == version:
            yield last
            return
        yield Retried()
    message = f"{job.path}: the file changed while it was decoded, {MAX_CHANGES} times; run again when it is complete"
    yield Failure(job.video_id, CHANGED, message, MAX_CHANGES, **identity)


def _frames(reading: VideoReading, heartbeat: _Heartbeat) -> Iterator[Frames]:
    positions, pixels = [], []
    for positions_of_frame, pixels_of_frame in reading.frames():
        heartbeat()
        positions.append(positions_of_frame)
        pixels.append(pixels_of_frame)
        if len(pixels) == FRAMES_PER_MESSAGE:
            yield Frames(positions, np.stack(pixels))
            positions, pixels = [], []
    if pixels:
        yield Frames(positions, np.stack(pixels))


def _reason(job: Job, error: Exception) -> tuple[str, str]:
    """(reason, message) of an exception."""
    words = " ".join(str(error).split())[:200] or "no message"
    if isinstance(error, VideoError):
        return error.reason, str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in words):
        return "out_of_memory", f"{job.path}: decoding took more memory than one video may (--memory)"
    if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
        at = f" at {error.filename}" if error.filename and str(error.filename) != str(job.path) else ""
        return MACHINE, f"{job.path}: cannot be read ({error.strerror or error}{at})"
    return "decode_error", f"{job.path}: the decoder failed ({type(error).__name__}: {words})"
