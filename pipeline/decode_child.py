"""The process that decodes: it takes jobs from a pipe and gives resized frames back, and may die at any of them.

Whatever a decoder does to its process (a hang, a segfault, a leak) ends here and not where the tower is. Frames go
through the pipe a few at a time and wait there until they are taken, so memory does not grow with the video.
"""

import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from unloc.data.tar_shards import VideoFile, on_disk
from unloc.errors import VideoError
from unloc.inference.reading import ReadSpec, ResizedFrame, VideoReading

FRAMES_PER_MESSAGE = 16
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


def run_child(connection: Connection, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    """Decode jobs until the pipe is closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung decoder must not outlive its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    _limit_memory(memory_bytes)
    try:
        connection.send(Ready(_memory("VmRSS")))
        while True:
            _decode(connection, connection.recv(), spec)
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


def _decode(connection: Connection, job: Job, spec: ReadSpec) -> None:
    try:
        _send_frames(connection, job, spec)
    except VideoError as error:
        connection.send(Broken(error.reason, str(error)))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except OSError as error:
        connection.send(Broken("unreadable", f"{job.path}: cannot be read ({error.strerror or error})"))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        words = "decoding took more memory than one video may (--memory)"
        connection.send(Broken("out_of_memory", f"{job.path}: {words}"))


def _send_frames(connection: Connection, job: Job, spec: ReadSpec) -> None:
    with on_disk(job.path) as path:
        _send_frames_at(path, connection, job, spec)


def _send_frames_at(path: Path, connection: Connection, job: Job, spec: ReadSpec) -> None:
    reading = VideoReading(path, spec, job.path)
    connection.send(Opened(len(reading.wanted_seconds)))
    some: list[ResizedFrame] = []
    for frame in reading.frames():
        some.append(frame)
        if len(some) == FRAMES_PER_MESSAGE:
            connection.send(_together(some))
            some = []
    if some:
        connection.send(_together(some))
    connection.send(Ended(reading.row(job.video_id), _memory("VmRSS")))


def _together(frames: list[ResizedFrame]) -> Frames:
    return Frames([frame.positions for frame in frames], np.stack([frame.pixels for frame in frames]))
