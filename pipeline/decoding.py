"""A decoder in a guarded child process: a hang, a crash or a leak costs one video and not the calling process.

Jobs go through a pipe, resized frames come back. The pipe holds a few frames at a time, so memory does not grow with
the length of a video.
"""

import ctypes
import logging
import multiprocessing
import os
import re
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch

from unloc.cache.shards import Failure
from unloc.errors import UnlocError, VideoError
from unloc.video.reading import CHANGED, ReadSpec, VideoReading
from unloc.video.video_file import RemoteVideo, VideoFile, file_identity, file_version, on_disk

logger = logging.getLogger(__name__)
MAX_KILLS = 2  # a video whose decoder died this often is quarantined
MAX_KILLS_FROM_OUTSIDE = 5  # the same for a SIGKILL that neither this module nor the kernel's OOM killer sent
MAX_CHANGES = 3  # times that a file may change while it is decoded
JOBS_AHEAD = 2  # sent to the process, so that it decodes the next video while frames of the last are encoded
START_SECONDS = 120.0  # a fork taken while another thread held a lock may never answer; it is replaced
MAX_STARTS = 3
FRAMES_PER_MESSAGE = 16
HEARTBEAT_SECONDS = 0.1
MACHINE = "machine"  # reason of a Failure that is not the video's fault: a file could not be read or written here
FROM_OUTSIDE = "from outside"
DECODING_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError)
DECODING_ERRORS += (TypeError, ValueError, av.error.FFmpegError)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost, and how long one decoding process may live."""

    timeout_seconds: float = 600.0
    """Longest time without progress. Waiting for frames to be encoded does not count, and a long video may take as
    long as it needs."""
    memory_bytes: int = 4 << 30  # most that decoding one video may take
    recycle_videos: int = 500  # after which the process is replaced
    recycle_bytes: int = 1 << 30  # growth in resident memory after which the process is replaced


class Job(NamedTuple):
    """One video to encode."""

    video_id: str
    path: VideoFile


class Frames(NamedTuple):
    """Some frames of the video: for each, which tokens it becomes; and (F, views, 3, S, S) uint8."""

    positions: list[list[int]]
    pixels: np.ndarray


class Ended(NamedTuple):
    """All frames were sent; the resident memory of the process has grown by so much since its start."""

    row: dict
    grown_bytes: int


class Retried:
    """The video starts again, because its decoder died or its file changed; discard the frames sent so far."""


class Alive(NamedTuple):
    """The process makes progress; is it downloading the video?"""

    is_fetching: bool = False


Event = Frames | Ended | Failure | Retried


class GuardedDecoder(AbstractContextManager):
    """Decodes in a forked process, which is replaced when it hangs, dies, leaks or is old. Close it after use."""

    def __init__(self, spec: ReadSpec, limits: Limits, on_message: Callable[[], None] = lambda: None) -> None:
        """`on_message` is called for every sign of progress."""
        self.spec, self.limits, self.on_message = spec, limits, on_message
        self._child: _Child | None = None
        self._queue: deque[Job] = deque()
        self._kills: Counter[bool] = Counter()  # deaths of the current job's decoder, by: was it killed from outside?
        self._waited = 0.0

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and forget its jobs."""
        if self._child is not None:
            self._child.kill()
        self._child = None
        self._queue.clear()

    def events(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """Frames … and Ended of one job after another; or Failure, which ends it; Retried starts it again."""
        source = iter(jobs)
        while self._send_jobs(source):
            job = self._queue[0]
            event = self._next_event(job)
            if isinstance(event, Ended | Failure):
                self._queue.popleft()
                self._waited = 0.0
                self._kills.clear()
            self.on_message()
            yield job, event

    def _send_jobs(self, source: Iterator[Job]) -> bool:
        """Keep JOBS_AHEAD jobs in the process; False when there are no more."""
        if self._child is not None and self._child.is_old and not self._queue:
            self.close()
        is_old = self._child is not None and self._child.is_old
        unsent = list(islice(source, 0 if is_old else JOBS_AHEAD - len(self._queue)))
        self._queue += unsent
        if self._queue and self._child is None:
            self._child, unsent = _start(self.spec, self.limits), self._queue
        for job in unsent:
            self._child.send(job)
        return bool(self._queue)

    def _next_event(self, job: Job) -> Event:
        """The next event of a job; where its decoder died or hangs, it is tried again or quarantined."""
        started, is_fetching, limit = time.monotonic(), False, self.limits.timeout_seconds
        try:
            while isinstance(event := self._child.receive(limit), Alive):
                is_fetching = event.is_fetching
                self.on_message()
        except (EOFError, OSError):
            reason, message = self._child.cause_of_death()
        else:
            if event is not None:
                self._waited += time.monotonic() - started
                waited = {"seconds_waiting": round(self._waited, 4)}
                return event._replace(row=event.row | waited) if isinstance(event, Ended) else event
            reason, what = (MACHINE, "download") if is_fetching else ("timeout", "decoder")
            message = f"the {what} made no progress for {limit:g} s (--timeout)"
        self._child.kill()
        self._child, self._waited = None, 0.0
        from_outside = reason == FROM_OUTSIDE
        self._kills[from_outside] += 1
        kills, most = self._kills[from_outside], MAX_KILLS_FROM_OUTSIDE if from_outside else MAX_KILLS
        logger.warning("%s: %s (attempt %d of %d)", job.video_id, message, kills, most)
        if kills < most:
            return Retried()
        message = f"{job.path}: {message}, {kills} times: quarantined"
        return Failure(job.video_id, "signal" if from_outside else reason, message, kills)


class _Child:
    """The process and its pipe."""

    def __init__(self, spec: ReadSpec, limits: Limits) -> None:
        # Forked: modules imported here need not be imported again, and their pages are shared.
        context = multiprocessing.get_context("fork")
        self.connection, childs_end = context.Pipe()
        self.stderr = os.memfd_create("stderr of a decoder")
        arguments = (self.connection, childs_end, self.stderr, spec, limits.memory_bytes)
        self.process = context.Process(target=_run_child, args=arguments, daemon=True)
        self.process.start()
        childs_end.close()
        self.limits, self.num_jobs, self.grown_bytes = limits, 0, 0
        self.oom_kills = _proc_number("vmstat", "oom_kill")

    def send(self, job: Job) -> None:
        """Send a job; a dead process is noticed when its answer is awaited."""
        self.num_jobs += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)

    def receive(self, timeout_seconds: float) -> Event | Alive | None:
        """The next message; None after the timeout. Raises EOFError or OSError where the process has died."""
        if not self.connection.poll(timeout_seconds):
            return None
        message = self.connection.recv()
        if isinstance(message, Ended):
            self.grown_bytes = message.grown_bytes
        return message

    @property
    def is_old(self) -> bool:
        """Has it decoded enough videos, or grown too much?"""
        return self.grown_bytes > self.limits.recycle_bytes or self.num_jobs >= self.limits.recycle_videos

    def cause_of_death(self) -> tuple[str, str]:
        """(reason, message) of a process that has ended."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        if code is None or code >= 0:
            lines = os.pread(self.stderr, 1 << 16, 0).decode(errors="replace").strip().splitlines()
            return "crash", f"the decoder exited with code {code} ({lines[-1][:160] if lines else 'no output'})"
        if -code != signal.SIGKILL:
            return "signal", f"the decoder was killed by {signal.Signals(-code).name}"
        if _proc_number("vmstat", "oom_kill") > self.oom_kills:
            return "out_of_memory", "the decoder was killed because the machine ran out of memory"
        return FROM_OUTSIDE, "the decoder was killed by SIGKILL from outside"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(timeout=5)  # a process that waits for a dead disk cannot be killed: it is left behind
        self.connection.close()
        os.close(self.stderr)


def _proc_number(file: str, field: str) -> int:
    """The number after a field's name in a file of /proc; 0 where there is none."""
    match = re.search(rf"^{field}:?\s+(\d+)", Path("/proc", file).read_text(encoding="utf-8"), re.MULTILINE)
    return int(match[1]) if match else 0


def _start(spec: ReadSpec, limits: Limits) -> _Child:
    """A process that has sent its first message."""
    for _ in range(MAX_STARTS):
        child = _Child(spec, limits)
        try:
            if child.receive(START_SECONDS) is not None:
                return child
        except (EOFError, OSError):
            raise UnlocError(f"the decoding process does not start: {child.cause_of_death()[1]}") from None
        child.kill()
    raise UnlocError(f"the decoding process does not start: no answer in {START_SECONDS:.0f} s, {MAX_STARTS} times")


def _run_child(parents_end: Connection, connection: Connection, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    """Decode jobs until the pipe is closed. The first message says that the process is ready."""
    parents_end.close()  # otherwise the pipe never closes: this process would hold both its ends
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung decoder must not outlive its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    # A limit on memory makes allocations fail, as one video's error, before the system starts to kill processes.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = 1024 * _proc_number("self/status", "VmData") + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    heartbeat, rss_at_start = _Heartbeat(connection), 1024 * _proc_number("self/status", "VmRSS")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended, or closed the pipe
        connection.send(Alive())
        while True:
            for message in _messages(connection.recv(), spec, heartbeat, rss_at_start):
                connection.send(message)


class _Heartbeat:
    """Reports progress every HEARTBEAT_SECONDS; called from inside the reading, so that a hang is silent."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.is_fetching, self.sent_at = connection, False, 0.0

    def __call__(self) -> None:
        if time.monotonic() - self.sent_at > HEARTBEAT_SECONDS:
            self.connection.send(Alive(self.is_fetching))
            self.sent_at = time.monotonic()


def _messages(job: Job, spec: ReadSpec, heartbeat: _Heartbeat, rss_at_start: int) -> Iterator[Event | Alive]:
    """All messages about one job. A file that changes while it is read is read again."""
    for _ in range(MAX_CHANGES):
        file, is_remote = job.path, isinstance(job.path, RemoteVideo)
        version, identity, heartbeat.is_fetching = file_version(file), file_identity(file), is_remote
        try:
            if is_remote:
                yield Alive(is_fetching=True)
                version = file = file.current()
                identity = file_identity(file)
            with on_disk(file, heartbeat) as path:
                heartbeat.is_fetching = False
                yield Alive()
                reading = VideoReading(path, spec, file, heartbeat)
                frames = reading.frames()
                while part := [heartbeat() or frame for frame in islice(frames, FRAMES_PER_MESSAGE)]:
                    positions, pixels = zip(*part, strict=True)
                    yield Frames(list(positions), np.stack(pixels))
                last = Ended(reading.row(job.video_id), 1024 * _proc_number("self/status", "VmRSS") - rss_at_start)
        except DECODING_ERRORS as error:
            last = Failure(job.video_id, *_reason(job, error), **identity)
        if file_version(file) == version:
            yield last
            return
        yield Retried()
    message = f"{job.path}: the file changed while it was decoded, {MAX_CHANGES} times; run again when it is complete"
    yield Failure(job.video_id, CHANGED, message, MAX_CHANGES, **identity)


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
