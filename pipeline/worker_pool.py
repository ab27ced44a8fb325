"""A pool of Ray actors that take groups of videos and give results as they come; dead ones are replaced."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.decode_child import Job
from pipeline.decoding import Limits
from pipeline.workers import FusedWorker, Result, failure_of, id_of
from unloc.errors import UnlocError
from unloc.inference.encode import EncodeConfig

logger = logging.getLogger(__name__)
MAX_DEATHS = 5  # workers that may die around a video before it is given up; its decoder dies apart from them
PATIENCE_SECONDS = 60.0


def fused_worker(config: EncodeConfig, limits: Limits) -> Callable[[], ray.actor.ActorHandle]:
    """Starts actors that each decode and encode, one to a core: where there is no accelerator."""
    actor = ray.remote(num_cpus=1, max_restarts=0)(FusedWorker)
    return lambda: actor.remote(config, limits)


@dataclass
class _Group:
    """Jobs that a worker has."""

    worker: ray.actor.ActorHandle
    left: dict[str, Job]
    is_single: bool


class WorkerPool:
    """A bounded set of actors with `where` and `results`; dead ones are replaced, what they had is done by others.

    A worker gets jobs only once it has said that it stands: one that the cluster has no room for holds up nothing.
    Back-pressure: a worker has one group of jobs at a time, and its results are taken as they come.
    """

    def __init__(self, start_actor: Callable[[], ray.actor.ActorHandle], num_workers: int, max_group: int) -> None:
        self.start_actor, self.num_workers, self.max_group = start_actor, num_workers, max_group
        self.seconds_to_first_worker = 0.0
        """From the call of `results` until a worker stood with its tower loaded."""
        self._starting: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
        self._running: dict[ray.ObjectRefGenerator, _Group] = {}
        self._idle: deque[ray.actor.ActorHandle] = deque()
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0

    def results(self, jobs: list[Job]) -> Iterator[Result]:
        """Results in the order in which they are ready. Raises UnlocError where workers do not start."""
        self._started = time.perf_counter()
        waiting = deque(jobs)
        for _ in range(self.num_workers):
            self._start_worker()
        while waiting or self._running:
            while self._idle and waiting:
                self._hand_out(waiting)
            ready, _ = ray.wait([*self._starting, *self._running], num_returns=1, timeout=PATIENCE_SECONDS)
            for waitable in ready:
                if waitable in self._starting:
                    self._note_start(waitable)
                else:
                    yield from self._take(waitable, waiting)
            if not self._running and not self._idle and not ready:
                logger.warning("no worker has started for %.0f s; free: %s", PATIENCE_SECONDS, free_resources())

    def _start_worker(self) -> None:
        worker = self.start_actor()
        self._starting[worker.where.remote()] = worker

    def _note_start(self, reference: ray.ObjectRef) -> None:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            raise own_error(error) from None
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts > 2 * self.num_workers:
                raise UnlocError(f"workers do not start: {last_line(error)}") from None
            self._start_worker()
            return
        self._failed_starts = 0
        self.seconds_to_first_worker = self.seconds_to_first_worker or time.perf_counter() - self._started
        self._idle.append(worker)

    def _hand_out(self, waiting: deque[Job]) -> None:
        size = min(self.max_group, max(1, len(waiting) // (2 * self.num_workers)))
        group = [waiting.popleft()]
        # A video around which a worker died is tried alone: it takes no other with it.
        while waiting and len(group) < size and not self._deaths[group[0].video_id]:
            group.append(waiting.popleft())
        worker = self._idle.popleft()
        results = worker.results.options(num_returns="streaming").remote(group)
        self._running[results] = _Group(worker, {job.video_id: job for job in group}, len(group) == 1)

    def _take(self, results: ray.ObjectRefGenerator, waiting: deque[Job]) -> Iterator[Result]:
        group = self._running[results]
        try:
            result = ray.get(next(results))
        except StopIteration:
            del self._running[results]
            self._idle.append(group.worker)
        except RayTaskError as error:
            raise own_error(error) from None
        except RayError as error:
            del self._running[results]
            ray.kill(group.worker)  # one that cannot be reached may still live
            self._start_worker()
            yield from self._after_death(group, waiting, last_line(error))
        else:
            del group.left[id_of(result)]
            yield result

    def _after_death(self, group: _Group, waiting: deque[Job], words: str) -> Iterator[Result]:
        logger.warning("a worker died (%s); its %d videos go to another", words, len(group.left))
        for job in reversed(group.left.values()):
            # Held against a video that was alone with its worker; of a group nobody knows which one it was.
            self._deaths[job.video_id] = self._deaths[job.video_id] + 1 if group.is_single else 1
            if self._deaths[job.video_id] < MAX_DEATHS:
                waiting.appendleft(job)
                continue
            message = f"{job.path}: {MAX_DEATHS} workers died around it (last: {words}): quarantined"
            yield failure_of(job, "worker_died", message, MAX_DEATHS)


def own_error(error: RayTaskError) -> Exception:
    """What a worker raised, if it is an error of ours, else Ray's."""
    return error.cause if isinstance(error.cause, UnlocError) else error


def last_line(error: Exception) -> str:
    """An error's words on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__


def free_resources() -> dict[str, float]:
    """CPUs and GPUs that the cluster could give now."""
    return {name: count for name, count in ray.available_resources().items() if name in ("CPU", "GPU")}
