"""Decoding apart from encoding: an actor that owns an accelerator, and decoders on CPUs that feed it.

One accelerator encodes faster than one core decodes. The encoder starts its decoders itself and reads their frames
straight from them, so the driver sees tokens only; a decoder waits while a few messages of its frames are not taken.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.decode_child import Broken, Ended, Job
from pipeline.decoding import Event, GuardedDecoder, Limits, Retried
from pipeline.worker_pool import last_line, own_error
from pipeline.workers import Assembler, Result, encode_jobs
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.reading import ReadSpec

logger = logging.getLogger(__name__)
MESSAGES_AHEAD = 4  # of a decoder's messages that may wait in the object store
MAX_DEATHS = 5  # decode actors that may die around a video; the process that decodes dies apart from them


def split_worker(
    config: EncodeConfig, limits: Limits, num_decoders: int, *, on_gpu: bool
) -> Callable[[], ray.actor.ActorHandle]:
    """Starts encoders that each have this many decoders."""
    actor = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_restarts=0)(EncodeWorker)
    return lambda: actor.remote(config, limits, num_decoders, on_gpu)


class DecodeWorker:
    """A Ray actor that only decodes."""

    def __init__(self, spec: ReadSpec, limits: Limits) -> None:
        self.decoder = GuardedDecoder(spec, limits)

    def events(self, job: Job) -> Iterator[Event]:
        """What happens to the job."""
        for _, event in self.decoder.events([job]):
            yield event


class EncodeWorker:
    """A Ray actor that encodes what its decoders send it."""

    def __init__(self, config: EncodeConfig, limits: Limits, num_decoders: int, on_gpu: bool) -> None:
        encoder = Encoder(config, resolve_device("cuda" if on_gpu else "cpu"))
        self.assembler = Assembler(encoder)
        self.decoders = RemoteDecoders(encoder.read_spec, limits, num_decoders)

    def where(self) -> tuple[str, int]:
        """Host and process id; answered once the tower is loaded."""
        return socket.gethostname(), os.getpid()

    def results(self, jobs: list[Job]) -> Iterator[Result]:
        """Results of the jobs as they are ready."""
        yield from encode_jobs(self.assembler, self.decoders, jobs)


@dataclass
class _Stream:
    """Events of one job on their way."""

    job: Job
    decoder: ray.actor.ActorHandle
    is_over: bool = False
    """Has its last event come?"""


class RemoteDecoders:
    """Decode actors behind the interface of `GuardedDecoder`; the events of several jobs come mixed."""

    def __init__(self, spec: ReadSpec, limits: Limits, num_decoders: int) -> None:
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(DecodeWorker)
        self._arguments = (spec, limits)
        self._idle = [self._actor.remote(spec, limits) for _ in range(num_decoders)]
        self._running: dict[ray.ObjectRefGenerator, _Stream] = {}
        self._deaths: Counter[str] = Counter()

    def events(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """Opened, Frames … and Ended of each job; Broken ends one, Retried begins one again."""
        waiting = deque(jobs)
        while waiting or self._running:
            while waiting and self._idle:
                self._start(waiting.popleft(), self._idle.pop())
            for generator in ray.wait(list(self._running), num_returns=1)[0]:
                job, event = self._running[generator].job, self._next_event(generator, waiting)
                if event is not None:
                    yield job, event

    def _start(self, job: Job, decoder: ray.actor.ActorHandle) -> None:
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": MESSAGES_AHEAD}
        self._running[decoder.events.options(**options).remote(job)] = _Stream(job, decoder)

    def _next_event(self, generator: ray.ObjectRefGenerator, waiting: deque[Job]) -> Event | None:
        stream = self._running[generator]
        try:
            event = ray.get(next(generator))
        except StopIteration:
            del self._running[generator]
            self._idle.append(stream.decoder)
            return None
        except RayTaskError as error:
            raise own_error(error) from None
        except RayError as error:
            del self._running[generator]
            ray.kill(stream.decoder)  # one that cannot be reached may still live
            self._idle.append(self._actor.remote(*self._arguments))
            return None if stream.is_over else self._after_death(stream.job, waiting, last_line(error))
        stream.is_over = isinstance(event, Ended | Broken)
        return event

    def _after_death(self, job: Job, waiting: deque[Job], words: str) -> Event:
        logger.warning("the decode worker of %s died (%s)", job.video_id, words)
        self._deaths[job.video_id] += 1
        if self._deaths[job.video_id] < MAX_DEATHS:
            waiting.append(job)
            return Retried()
        message = f"{job.path}: {MAX_DEATHS} decode workers died around it (last: {words}): quarantined"
        return Broken("worker_died", message, self._deaths.pop(job.video_id))
