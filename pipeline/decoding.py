"""A decoder behind a guard: a hang, a crash or a leak costs one video, whatever process the guard stands in."""

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

from pipeline.decode_child import (
    MACHINE,
    Alive,
    Broken,
    Ended,
    Frames,
    Job,
    Message,
    Opened,
    Ready,
    Retried,
    run_child,
)
from unloc.errors import UnlocError
from unloc.video.reading import ReadSpec

logger = logging.getLogger(__name__)
MAX_KILLS = 2  # a video whose decoder died this often is quarantined
MAX_KILLS_FROM_OUTSIDE = 5  # by SIGKILL, which neither this module nor the system for want of memory sent
JOBS_AHEAD = 2  # handed to the process, so that it goes on while its frames are encoded
START_SECONDS = 120.0  # a fork that met a lock of another thread never answers; it is replaced
MAX_STARTS = 3
FROM_OUTSIDE = "from outside"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost, and how long one process may live."""

    timeout_seconds: float = 600.0
    """Longest silence: seconds without a sign that a video is read. Time in which frames wait to be encoded does not
    count, and a long video may take as long as it needs."""
    memory_bytes: int = 4 << 30
    """Most memory that decoding a video may take."""
    recycle_videos: int = 500
    """Videos after which the process is replaced."""
    recycle_bytes: int = 1 << 30
    """Growth in resident memory after which it is replaced."""


Event = Opened | Frames | Ended | Broken | Retried


class _HungError(Exception):
    """Never leaves this module."""


class GuardedDecoder:
    """Decodes in a forked process, which is replaced when it hangs, dies, leaks or is old. Close it after use."""

    def __init__(self, spec: ReadSpec, limits: Limits, on_word: Callable[[], None] = lambda: None) -> None:
        """`on_word` is called at every message of the process, also at those that only say that it gets on."""
        self.spec, self.limits, self.on_word = spec, limits, on_word
        self._child: _Child | None = None
        self._queue: deque[Job] = deque()
        self._kills: Counter[bool] = Counter()
        """Of the job at hand: how often its decoder was killed, and whether from outside."""
        self._waited = 0.0

    def __enter__(self) -> "GuardedDecoder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def events(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """Opened, Frames … and Ended of one job after another; Broken ends a job, Retried begins it again."""
        source = iter(jobs)
        while self._hand_out(source):
            job = self._queue[0]
            event = self._next_event(job)
            if isinstance(event, Ended | Broken):
                self._queue.popleft()
                self._waited = 0.0
                self._kills.clear()
            yield job, event

    def _hand_out(self, source: Iterator[Job]) -> bool:
        """Keep some jobs in the process; False when there are no more."""
        if self._child is not None and not self._queue and self._child.is_worn(self.limits):
            self.close()
        while len(self._queue) < JOBS_AHEAD and not (self._child and self._child.is_worn(self.limits)):
            job = next(source, None)
            if job is None:
                break
            self._queue.append(job)
            if self._child is not None:
                self._child.send(job)
        if self._queue and self._child is None:
            self._child = _start(self.spec, self.limits)
            for job in self._queue:
                self._child.send(job)
        return bool(self._queue)

    def _next_event(self, job: Job) -> Event:
        started, is_fetching = time.monotonic(), False
        try:
            event = self._child.receive(self.limits.timeout_seconds)
            while isinstance(event, Alive):
                is_fetching = is_fetching if event.is_fetching is None else event.is_fetching
                self.on_word()
                event = self._child.receive(self.limits.timeout_seconds)
        except _HungError:
            self.close()
            if is_fetching:
                words = f"nothing came from its store for {self.limits.timeout_seconds:g} s (--timeout)"
                return self._after_kill(job, MACHINE, words)
            words = f"its decoder made no progress for {self.limits.timeout_seconds:g} s (--timeout)"
            return self._after_kill(job, "timeout", words)
        except (EOFError, OSError):
            reason, words = self._child.cause_of_death()
            self._child = None
            return self._after_kill(job, reason, words)
        self._waited += time.monotonic() - started
        if isinstance(event, Ended):
            return replace(event, row=event.row | {"seconds_waiting": round(self._waited, 4)})
        return event

    def _after_kill(self, job: Job, reason: str, words: str) -> Event:
        self._waited = 0.0
        from_outside = reason == FROM_OUTSIDE
        self._kills[from_outside] += 1
        kills, most = self._kills[from_outside], MAX_KILLS_FROM_OUTSIDE if from_outside else MAX_KILLS
        logger.warning("%s: %s (attempt %d of %d)", job.video_id, words, kills, most)
        if kills < most:
            return Retried()
        return Broken("signal" if from_outside else reason, f"{job.path}: {words}, {kills} times: quarantined", kills)


class _Child:
    """The process and its pipe."""

    def __init__(self, spec: ReadSpec, limits: Limits) -> None:
        # Forked: what this process has imported need not be imported again, and its pages are shared.
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.stderr = os.memfd_create("stderr of a decoder")
        arguments = (self.connection, theirs, self.stderr, spec, limits.memory_bytes)
        self.process = context.Process(target=_run_forked, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.num_videos, self.rss_at_start, self.rss_bytes = 0, 0, 0
        self.memory_kills = _memory_kills()

    def send(self, job: Job) -> None:
        """Hand a job over; that the process has died is noticed when its answer is waited for."""
        self.num_videos += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)

    def receive(self, timeout_seconds: float) -> Ready | Message:
        """The next message. Raises _HungError after the timeout, EOFError or OSError where the process has died."""
        if not self.connection.poll(timeout_seconds):
            raise _HungError
        message = self.connection.recv()
        if isinstance(message, Ended):
            self.rss_bytes = message.rss_bytes
        return message

    def is_worn(self, limits: Limits) -> bool:
        """Has it done enough, or grown too much?"""
        grown = self.rss_bytes - self.rss_at_start
        return self.num_videos >= limits.recycle_videos or (self.rss_bytes > 0 and grown > limits.recycle_bytes)

    def cause_of_death(self) -> tuple[str, str]:
        """(reason, words) of a process that has gone."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        lines = os.pread(self.stderr, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        self.kill()
        if code is not None and code < 0:
            if -code != signal.SIGKILL:
                return "signal", f"its decoder was ended by {signal.Signals(-code).name}"
            if _memory_kills() > self.memory_kills:
                return "out_of_memory", "its decoder was killed because the machine ran out of memory"
            return FROM_OUTSIDE, "its decoder was ended by SIGKILL from outside"
        return "crash", f"its decoder ended with exit code {code} ({lines[-1][:160] if lines else 'no word'})"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(timeout=5)  # one that waits for a dead disk cannot even be killed: it is left behind
        self.connection.close()
        os.close(self.stderr)


def _memory_kills() -> int:
    """How many processes Linux has killed for want of memory since it started."""
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _run_forked(ours: object, theirs: object, stderr: int, spec: ReadSpec, memory_bytes: int) -> None:
    ours.close()  # else the pipe would never end for a child that holds both its ends
    run_child(theirs, stderr, spec, memory_bytes)


def _start(spec: ReadSpec, limits: Limits) -> _Child:
    """A process that has said that it takes jobs."""
    for _ in range(MAX_STARTS):
        child = _Child(spec, limits)
        try:
            child.rss_at_start = child.receive(START_SECONDS).rss_bytes
        except _HungError:
            child.kill()
            continue
        except (EOFError, OSError):
            raise UnlocError(f"the decoding process does not start: {child.cause_of_death()[1]}") from None
        return child
    raise UnlocError(f"the decoding process does not start: no answer in {START_SECONDS:.0f} s, {MAX_STARTS} times")
