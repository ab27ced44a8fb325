"""A decoder in a guarded child process: a hang, a crash or a leak costs one video and not the calling process."""

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.decode_child import MACHINE, Alive, Ended, Frames, Job, Message, Retried, run_child
from unloc.cache.shards import Failure
from unloc.errors import UnlocError
from unloc.video.reading import ReadSpec

logger = logging.getLogger(__name__)
MAX_KILLS = 2  # a video whose decoder died this often is quarantined
MAX_KILLS_FROM_OUTSIDE = 5  # the same for a SIGKILL that neither this module nor the kernel's OOM killer sent
JOBS_AHEAD = 2  # sent to the process, so that it decodes the next video while frames of the last are encoded
START_SECONDS = 120.0  # a fork taken while another thread held a lock may never answer; it is replaced
MAX_STARTS = 3
FROM_OUTSIDE = "from outside"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost, and how long one decoding process may live."""

    timeout_seconds: float = 600.0
    """Longest time without progress. Waiting for frames to be encoded does not count, and a long video may take as
    long as it needs."""
    memory_bytes: int = 4 << 30
    """Most memory that decoding one video may take."""
    recycle_videos: int = 500
    """Videos after which the process is replaced."""
    recycle_bytes: int = 1 << 30
    """Growth in resident memory after which the process is replaced."""


Event = Frames | Ended | Failure | Retried


class GuardedDecoder:
    """Decodes in a forked process, which is replaced when it hangs, dies, leaks or is old. Close it after use."""

    def __init__(self, spec: ReadSpec, limits: Limits, on_message: Callable[[], None] = lambda: None) -> None:
        """`on_message` is called for every sign of progress."""
        self.spec, self.limits, self.on_message = spec, limits, on_message
        self._child: _Child | None = None
        self._queue: deque[Job] = deque()
        self._kills: Counter[bool] = Counter()
        """For the current job: how often its decoder died, by whether it was killed from outside."""
        self._waited = 0.0

    def __enter__(self) -> "GuardedDecoder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and forget its jobs."""
        self._end_child()
        self._queue.clear()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

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
        is_old = self._child is not None and self._child.is_old(self.limits)
        if is_old and not self._queue:
            self._end_child()
            is_old = False
        while len(self._queue) < JOBS_AHEAD and not is_old and (job := next(source, None)) is not None:
            self._queue.append(job)
            if self._child is not None:
                self._child.send(job)
                is_old = self._child.is_old(self.limits)
        if self._queue and self._child is None:
            self._child = _start(self.spec, self.limits)
            for job in self._queue:
                self._child.send(job)
        return bool(self._queue)

    def _next_event(self, job: Job) -> Event:
        started, is_fetching, limit = time.monotonic(), False, self.limits.timeout_seconds
        try:
            while isinstance(event := self._child.receive(limit), Alive):
                is_fetching = event.is_fetching
                self.on_message()
        except (EOFError, OSError):
            reason, message = self._child.cause_of_death()
            self._child = None
            return self._after_kill(job, reason, message)
        if event is None:
            self._end_child()
            if is_fetching:
                return self._after_kill(job, MACHINE, f"the download made no progress for {limit:g} s (--timeout)")
            return self._after_kill(job, "timeout", f"the decoder made no progress for {limit:g} s (--timeout)")
        self._waited += time.monotonic() - started
        if isinstance(event, Ended):
            return replace(event, row=event.row | {"seconds_waiting": round(self._waited, 4)})
        return event

    def _after_kill(self, job: Job, reason: str, message: str) -> Event:
        """Try the video again, or quarantine it."""
        self._waited = 0.0
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
        self.process = context.Process(target=run_child, args=arguments, daemon=True)
        self.process.start()
        childs_end.close()
        self.num_jobs, self.oom_kills = 0, _oom_kills()
        self.grown_bytes: int | None = None

    def send(self, job: Job) -> None:
        """Send a job; a dead process is noticed when its answer is awaited."""
        self.num_jobs += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)

    def receive(self, timeout_seconds: float) -> Message | None:
        """The next message; None after the timeout. Raises EOFError or OSError where the process has died."""
        if not self.connection.poll(timeout_seconds):
            return None
        message = self.connection.recv()
        if isinstance(message, Ended):
            self.grown_bytes = message.grown_bytes
        return message

    def is_old(self, limits: Limits) -> bool:
        """Has it decoded enough videos, or grown too much?"""
        has_grown = self.grown_bytes is not None and self.grown_bytes > limits.recycle_bytes
        return has_grown or self.num_jobs >= limits.recycle_videos

    def cause_of_death(self) -> tuple[str, str]:
        """(reason, message) of a process that has ended."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        lines = os.pread(self.stderr, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        self.kill()
        if code is None or code >= 0:
            return "crash", f"the decoder exited with code {code} ({lines[-1][:160] if lines else 'no output'})"
        if -code != signal.SIGKILL:
            return "signal", f"the decoder was killed by {signal.Signals(-code).name}"
        if _oom_kills() > self.oom_kills:
            return "out_of_memory", "the decoder was killed because the machine ran out of memory"
        return FROM_OUTSIDE, "the decoder was killed by SIGKILL from outside"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(timeout=5)  # a process that waits for a dead disk cannot be killed: it is left behind
        self.connection.close()
        os.close(self.stderr)


def _oom_kills() -> int:
    """Processes that the kernel has killed for lack of memory since it booted."""
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


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
