"""A decoder in a guarded child process: a hang, a crash or a leak costs one video and not the calling process."""

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

from unloc.cache.shards import Failure
from unloc.child_process import start_worker
from unloc.errors import UnlocError, VideoError
from unloc.files import file_identity
from unloc.video.reading import CHANGED, ReadSpec, VideoReading
from unloc.video.video_file import RemoteVideo, VideoFile, file_version, on_disk

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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost, and how long one decoding process may live."""

    timeout_seconds: float = 600.0  # longest without progress; waiting for frames to be encoded does not count
    memory_bytes: int = 4 << 30  # most that decoding one video may take
    recycle_videos: int = 500  # after which the process is replaced
    recycle_bytes: int = 1 << 30  # growth in resident memory after which the process is replaced


class Job(NamedTuple):
    """One video to encode."""

    video_id: str
    path: VideoFile


class Retried:
    """The video starts again, because its decoder died or its file changed; discard the frames sent so far."""


Event = tuple[list[list[int]], np.ndarray] | dict | Failure | Retried
"""Some frames, as for `encode_frames`; the row after the last of them; the failure of the video; or its new start."""


class GuardedDecoder(AbstractContextManager):
    """Decodes in a forked process, which is replaced when it hangs, dies, leaks or is old. Close it after use."""

    process: multiprocessing.process.BaseProcess | None = None

    def __init__(self, spec: ReadSpec, limits: Limits, on_message: Callable[[], None] = lambda: None) -> None:
        """`on_message` is called for every sign of progress."""
        self.spec, self.limits, self.on_message = spec, limits, on_message
        self._queue: deque[Job] = deque()
        self._kills: Counter[bool] = Counter()  # deaths of the current job's decoder, by: was it killed from outside?
        self._waited = 0.0

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and forget its jobs."""
        self._kill()
        self._queue.clear()

    def events(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """Events of one job after another; a row or a Failure is the last of its job."""
        source, limits = iter(jobs), self.limits
        while True:  # keep JOBS_AHEAD jobs in the process
            is_old = self.process and self._grown_bytes > limits.recycle_bytes
            is_old = is_old or (self.process and self._num_jobs >= limits.recycle_videos)
            if is_old and not self._queue:
                self._kill()
                is_old = False
            unsent = list(islice(source, 0 if is_old else JOBS_AHEAD - len(self._queue)))
            self._queue += unsent
            if not self._queue:
                return
            if self.process is None:
                self._start()
                unsent = self._queue
            for job in unsent:
                self._num_jobs += 1
                with suppress(BrokenPipeError, ConnectionResetError):  # noticed when its answer is awaited
                    self._connection.send(job)
            job = self._queue[0]
            event = self._next_event(job)
            if isinstance(event, dict | Failure):
                self._queue.popleft()
                self._waited = 0.0
                self._kills.clear()
            self.on_message()
            yield job, event

    def _next_event(self, job: Job) -> Event:
        """The next event of a job; where its decoder died or hangs, it is tried again or quarantined."""
        started, is_fetching, limit = time.monotonic(), False, self.limits.timeout_seconds
        try:
            while isinstance(event := self._receive(limit), bool):
                is_fetching = event
                self.on_message()
        except (EOFError, OSError):
            reason, message = self._cause_of_death()
        else:
            if event is not None:
                self._waited += time.monotonic() - started
                return event | {"seconds_waiting": round(self._waited, 4)} if isinstance(event, dict) else event
            reason, what = (MACHINE, "download") if is_fetching else ("timeout", "decoder")
            message = f"the {what} made no progress for {limit:g} s (--timeout)"
        self._kill()
        self._waited = 0.0
        from_outside = reason == FROM_OUTSIDE
        self._kills[from_outside] += 1
        kills, most = self._kills[from_outside], MAX_KILLS_FROM_OUTSIDE if from_outside else MAX_KILLS
        logger.warning("%s: %s (attempt %d of %d)", job.video_id, message, kills, most)
        if kills < most:
            return Retried()
        message = f"{job.path}: {message}, {kills} times: quarantined"
        return Failure(job.video_id, "signal" if from_outside else reason, message, kills)

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")  # imported modules are shared
        for _ in range(MAX_STARTS):
            self._connection, childs_end = context.Pipe()
            self._stderr = os.memfd_create("stderr of a decoder")
            arguments = (self._connection, childs_end, self._stderr, self.spec, self.limits.memory_bytes)
            self.process = context.Process(target=_run_child, args=arguments, daemon=True)
            self.process.start()
            childs_end.close()
            self._num_jobs, self._grown_bytes = 0, 0
            self._oom_kills = _proc_number("vmstat", "oom_kill")
            try:
                if self._receive(START_SECONDS) is not None:
                    return
            except (EOFError, OSError):
                raise UnlocError(f"the decoding process does not start: {self._cause_of_death()[1]}") from None
            self._kill()
        raise UnlocError(f"the decoding process does not start: no answer in {START_SECONDS:.0f} s, {MAX_STARTS} times")

    def _receive(self, timeout_seconds: float) -> Event | bool | None:
        """The next message, a bool for progress: of a download? None after the timeout. Raises EOFError and OSError."""
        if not self._connection.poll(timeout_seconds):
            return None
        message = self._connection.recv()
        if isinstance(message, dict):
            self._grown_bytes = message.pop("grown_bytes")
        return message

    def _cause_of_death(self) -> tuple[str, str]:
        """(reason, message) of a process that has ended."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        if code is None or code >= 0:
            lines = os.pread(self._stderr, 1 << 16, 0).decode(errors="replace").strip().splitlines()
            return "crash", f"the decoder exited with code {code} ({lines[-1][:160] if lines else 'no output'})"
        if -code != signal.SIGKILL:
            return "signal", f"the decoder was killed by {signal.Signals(-code).name}"
        if _proc_number("vmstat", "oom_kill") > self._oom_kills:
            return "out_of_memory", "the decoder was killed because the machine ran out of memory"
        return FROM_OUTSIDE, "the decoder was killed by SIGKILL from outside"

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(timeout=5)  # a process that waits for a dead disk cannot be killed: it is left behind
            self._connection.close()
            os.close(self._stderr)
            self.process = None


def _proc_number(file: str, field: str) -> int:
    """The number after a field's name in a file of /proc; 0 where there is none."""
    match = re.search(rf"^{field}:?\s+(\d+)", Path("/proc", file).read_text(encoding="utf-8"), re.MULTILINE)
    return int(match[1]) if match else 0


def _run_child(parents_end: Connection, connection: Connection, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    """Decode jobs until the pipe is closed. The first message says that the process is ready."""
    parents_end.close()  # otherwise the pipe never closes: this process would hold both its ends
    start_worker()
    os.dup2(stderr, 2)
    # A limit on memory makes allocations fail, as one video's error, before the system starts to kill processes.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = 1024 * _proc_number("self/status", "VmData") + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    heartbeat, rss_at_start = _Heartbeat(connection), 1024 * _proc_number("self/status", "VmRSS")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended, or closed the pipe
        connection.send(False)
        while True:
            for message in _messages(connection.recv(), spec, heartbeat, rss_at_start):
                connection.send(message)


class _Heartbeat:
    """Reports progress every HEARTBEAT_SECONDS; called from inside the reading, so that a hang is silent."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.is_fetching, self.sent_at = connection, False, 0.0

    def __call__(self) -> None:
        if time.monotonic() - self.sent_at > HEARTBEAT_SECONDS:
            self.connection.send(self.is_fetching)
            self.sent_at = time.monotonic()


def _messages(job: Job, spec: ReadSpec, heartbeat: _Heartbeat, rss_at_start: int) -> Iterator[Event | bool]:
    """All messages about one job. A file that changes while it is read is read again."""
    for _ in range(MAX_CHANGES):
        file, is_remote = job.path, isinstance(job.path, RemoteVideo)
        version, identity, heartbeat.is_fetching = file_version(file), file_identity(file), is_remote
        try:
            if is_remote:
                yield True
                version = file = file.current()
                identity = file_identity(file)
            with on_disk(file, heartbeat) as path:
                heartbeat.is_fetching = False
                yield False
                reading = VideoReading(path, spec, file, heartbeat)
                frames = reading.frames()
                while part := [heartbeat() or frame for frame in islice(frames, FRAMES_PER_MESSAGE)]:
                    positions, pixels = zip(*part, strict=True)
                    yield list(positions), np.stack(pixels)
                last = reading.row(job.video_id)
                last["grown_bytes"] = 1024 * _proc_number("self/status", "VmRSS") - rss_at_start
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
    message = " ".join(str(error).split())[:200] or "no message"
    if isinstance(error, VideoError):
        return error.reason, str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in message):
        return "out_of_memory", f"{job.path}: decoding took more memory than one video may (--memory)"
    if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
        at = f" at {error.filename}" if error.filename and str(error.filename) != str(job.path) else ""
        return MACHINE, f"{job.path}: cannot be read ({error.strerror or error}{at})"
    return "decode_error", f"{job.path}: the decoder failed ({type(error).__name__}: {message})"
