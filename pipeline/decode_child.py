"""The process that decodes: it takes jobs from a pipe and gives resized frames back, and may die at any of them.

Whatever a decoder does to its process (a hang, a segfault, a leak) ends here and not where the tower is. Frames go
through the pipe a few at a time and wait there until they are taken, so memory does not grow with the video.
"""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import torch

from unloc.errors import VideoError
from unloc.video.reading import CHANGED, ReadSpec, ResizedFrame, VideoReading, file_identity, file_version
from unloc.video.remote_video import RemoteVideo
from unloc.video.tar_shards import VideoFile, on_disk

FRAMES_PER_MESSAGE = 16
PULSE_SECONDS = 0.1  # of silence after which a reading says that it gets on
MAX_CHANGES = 3  # times that a file may change under its decoder
MACHINE = "machine"  # reason of a Broken that says nothing about the video: its file, or a temporary one, failed here
DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    AssertionError,
    av.error.FFmpegError,
)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One video to encode."""

    video_id: str
    path: VideoFile


@dataclass(frozen=True)
class Ready:
    """The process takes jobs."""

    rss_bytes: int


@dataclass(frozen=True)
class Opened:
    """The file is a video, of which this many tokens are wanted."""

    num_tokens: int


@dataclass(frozen=True)
class Frames:
    """Some frames of it."""

    positions: list[list[int]]
    """Of each frame: which tokens it becomes."""
    pixels: np.ndarray
    """(F, views, 3, S, S) uint8."""


@dataclass(frozen=True)
class Ended:
    """All frames were sent."""

    row: dict
    rss_bytes: int


@dataclass(frozen=True)
class Broken:
    """There are no tokens of this video; frames sent before are void."""

    reason: str
    message: str
    attempts: int = 1
    identity: dict | None = None
    """`file_identity` of what did not decode; None where its process did not live to say it."""


@dataclass(frozen=True)
class Retried:
    """The video begins again, because its decoder died or its file changed; frames sent before are void."""


@dataclass(frozen=True)
class Alive:
    """The video is being read; nothing of it is ready."""

    is_fetching: bool | None = None
    """It is now fetched from its store, or no longer; None: as before."""


Message = Opened | Frames | Ended | Broken | Retried | Alive


class _Pulse:
    """Says now and then that the process gets on; called from within the reading, so a hang is silent."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.last = connection, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last > PULSE_SECONDS:
            self.connection.send(Alive())
            self.last = time.monotonic()


def run_child(connection: Connection, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    """Decode jobs until the pipe is closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung decoder must not outlive its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    _limit_memory(memory_bytes)
    pulse = _Pulse(connection)
    try:
        connection.send(Ready(_memory("VmRSS")))
        while True:
            for message in _messages(connection.recv(), spec, pulse):
                connection.send(message)
                pulse.last = time.monotonic()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone, or wants no more


def _limit_memory(more_bytes: int) -> None:
    """Let allocations fail, as one video's error, before the system runs out and kills whom it likes."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _memory("VmData") + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _messages(job: Job, spec: ReadSpec, on_progress: Callable[[], None]) -> Iterator[Message]:
    """All that is to say of a job. A file that changes while it is read is read again."""
    for _ in range(MAX_CHANGES):
        file, last = job.path, None
        version, identity = file_version(file), file_identity(file)
        try:
            if isinstance(file, RemoteVideo):
                yield Alive(is_fetching=True)
                file = file.current()
                version, identity = file, file_identity(file)
            with on_disk(file, on_progress) as path:
                yield Alive(is_fetching=False)
                reading = VideoReading(path, spec, file, on_progress)
                yield Opened(len(reading.wanted_seconds))
                yield from _batches(reading, on_progress)
                last = Ended(reading.row(job.video_id), _memory("VmRSS"))
        except DECODING_ERRORS as error:
            last = Broken(*_reason(job, error), identity=identity)
        if file_version(file) == version:
            yield last
            return
        yield Retried()
    words = f"the file changed while it was decoded, {MAX_CHANGES} times; run again when it is whole"
    yield Broken(CHANGED, f"{job.path}: {words}", MAX_CHANGES, identity)


def _reason(job: Job, error: Exception) -> tuple[str, str]:
    """(reason, message) of what a decoder raised."""
    words = " ".join(str(error).split())[:200] or "no word"
    if isinstance(error, VideoError):
        return error.reason, str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in words):
        return "out_of_memory", f"{job.path}: decoding took more memory than one video may (--memory)"
    if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
        at = f" at {error.filename}" if error.filename and str(error.filename) != str(job.path) else ""
        return MACHINE, f"{job.path}: cannot be read ({error.strerror or error}{at})"
    return "decode_error", f"{job.path}: its decoder failed ({type(error).__name__}: {words})"


def _batches(reading: VideoReading, on_progress: Callable[[], None]) -> Iterator[Frames]:
    """Its frames, some at a time."""
    some: list[ResizedFrame] = []
    for frame in reading.frames():
        on_progress()
        some.append(frame)
        if len(some) == FRAMES_PER_MESSAGE:
            yield _together(some)
            some = []
    if some:
        yield _together(some)


def _together(frames: list[ResizedFrame]) -> Frames:
    return Frames([frame.positions for frame in frames], np.stack([frame.pixels for frame in frames]))
