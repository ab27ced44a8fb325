"""Workers: a pool that takes (video id, file) jobs and gives results as they are ready, in this process or on Ray."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayTaskError

from pipeline.ledger import Failure
from unloc.data.cache_writer import VideoTokens
from unloc.errors import UnlocError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder, file_identity

logger = logging.getLogger(__name__)
MAX_KILLS = 2  # a video whose worker died this often is quarantined


@dataclass(frozen=True)
class Job:
    """One video to encode."""

    video_id: str
    path: Path


def encode_job(encoder: Encoder, job: Job, attempts: int = 1) -> VideoTokens | Failure:
    """Tokens of one video, or why there are none. The same code in every pool."""
    try:
        return encoder.encode_video(job.path, job.video_id)
    except VideoError as error:
        return failure_of(job, error.reason, str(error), attempts)
    except MemoryError:
        return failure_of(job, "out_of_memory", f"{job.path}: decoding ran out of memory", attempts)


def failure_of(job: Job, reason: str, message: str, attempts: int) -> Failure:
    """A failure with what tells later whether the file has changed."""
    identity = file_identity(job.path) if job.path.is_file() else {}
    return Failure(job.video_id, reason, message, attempts, **identity)


def in_process_results(config: EncodeConfig, jobs: Iterable[Job]) -> Iterator[VideoTokens | Failure]:
    """Results one after another in this process (`--workers 0`); nothing guards it against a decoder that crashes."""
    encoder = Encoder(config)
    for job in jobs:
        yield encode_job(encoder, job)


class EncodeWorker:
    """The Ray actor: a tower, and decode + encode fused, so that frames never cross a process border."""

    def __init__(self, config: EncodeConfig) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.encoder = Encoder(config)

    def encode(self, job: Job, attempts: int) -> VideoTokens | Failure:
        """Tokens of one video, or why there are none."""
        return encode_job(self.encoder, job, attempts)


@dataclass
class _Running:
    worker: ray.actor.ActorHandle
    job: Job
    started: float
    done_by_worker: int


class RayPool:
    """A bounded set of actors, one job each at a time; hung and dead workers are replaced.

    Back-pressure: jobs are drawn only when a worker is free, so memory does not grow with the number of videos.
    """

    def __init__(self, config: EncodeConfig, num_workers: int, *, timeout_seconds: float, recycle_after: int) -> None:
        self.config, self.num_workers = config, num_workers
        self.timeout_seconds, self.recycle_after = timeout_seconds, recycle_after
        self.kills: dict[str, int] = {}
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(EncodeWorker)
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._idle: deque[tuple[ray.actor.ActorHandle, int]] = deque()

    def results(self, jobs: Iterable[Job]) -> Iterator[VideoTokens | Failure]:
        """Results in the order in which they are ready. Raises UnlocError where the worker itself cannot start."""
        waiting: deque[Job] = deque()
        source = iter(jobs)
        self._idle.extend((self._actor.remote(self.config), 0) for _ in range(self.num_workers))
        while True:
            self._start_jobs(source, waiting)
            if not self._running:
                return
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0)
            for reference in ready:
                result = self._collect(reference, waiting)
                if result is not None:
                    yield result
            yield from self._kill_hung(waiting)

    def _start_jobs(self, source: Iterator[Job], waiting: deque[Job]) -> None:
        while self._idle:
            job = waiting.popleft() if waiting else next(source, None)
            if job is None:
                return
            worker, done = self._idle.popleft()
            reference = worker.encode.remote(job, self.kills.get(job.video_id, 0) + 1)
            self._running[reference] = _Running(worker, job, time.monotonic(), done)

    def _collect(self, reference: ray.ObjectRef, waiting: deque[Job]) -> VideoTokens | Failure | None:
        running = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except RayActorError as error:
            self._replace_worker()
            return self._after_kill(running.job, waiting, "killed", f"its worker died ({_last_line(error)})")
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, UnlocError) else None
            raise cause or error from None
        self._return_worker(running)
        return result

    def _return_worker(self, running: _Running) -> None:
        if running.done_by_worker + 1 >= self.recycle_after:  # leaks of decoders end with their process
            ray.kill(running.worker)
            self._replace_worker()
            return
        self._idle.append((running.worker, running.done_by_worker + 1))

    def _replace_worker(self) -> None:
        self._idle.append((self._actor.remote(self.config), 0))

    def _kill_hung(self, waiting: deque[Job]) -> Iterator[Failure]:
        for reference, running in list(self._running.items()):
            # A fresh worker first loads its tower: that time is not the video's.
            allowed = self.timeout_seconds * (2 if running.done_by_worker == 0 else 1)
            if time.monotonic() - running.started < allowed:
                continue
            del self._running[reference]
            ray.kill(running.worker)
            self._replace_worker()
            message = f"not done after {allowed:.0f} s (--timeout {self.timeout_seconds:.0f})"
            failure = self._after_kill(running.job, waiting, "timeout", message)
            if failure is not None:
                yield failure

    def _after_kill(self, job: Job, waiting: deque[Job], reason: str, words: str) -> Failure | None:
        kills = self.kills[job.video_id] = self.kills.get(job.video_id, 0) + 1
        logger.warning("%s: %s (attempt %d of %d)", job.video_id, words, kills, MAX_KILLS)
        if kills >= MAX_KILLS:
            return failure_of(job, reason, f"{job.path}: {words}, {kills} times: quarantined", kills)
        waiting.append(job)
        return None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
