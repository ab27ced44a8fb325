"""Workers: jobs in, results out as they are ready. The same code in this process and in every Ray actor."""

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from pipeline.decode_child import Broken, Ended, Frames, Job, Opened
from pipeline.decoding import Event, GuardedDecoder, Limits
from pipeline.ledger import Failure
from unloc.data.cache_writer import VideoTokens
from unloc.errors import VideoError
from unloc.inference.batching import FrameBatcher
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.reading import file_identity

Result = VideoTokens | Failure


def id_of(result: Result) -> str:
    """Which video a result is of."""
    return result.video_id if isinstance(result, Failure) else result.meta["video_id"]


def failure_of(job: Job, reason: str, message: str, attempts: int = 1) -> Failure:
    """A failure with what tells later whether the file has changed."""
    return Failure(job.video_id, reason, message, attempts, **file_identity(job.path))


class Assembler:
    """Turns what happens to jobs into results: frames into tokens, errors into failures."""

    def __init__(self, encoder: Encoder) -> None:
        self.batcher = FrameBatcher(encoder)
        self.jobs: dict[str, Job] = {}

    def take(self, job: Job, event: Event) -> Iterator[Result]:
        """Results that this event completes, of this job or of earlier ones."""
        batcher, video_id = self.batcher, job.video_id
        self.jobs[video_id] = job
        match event:
            case Opened():
                batcher.begin(video_id, event.num_tokens)
            case Frames():
                batcher.add(video_id, event.positions, event.pixels)
            case Ended():
                batcher.end(video_id, event.row)
            case Broken():
                batcher.drop(video_id)
                failure = failure_of(self.jobs.pop(video_id), event.reason, event.message, event.attempts)
                yield replace(failure, **(event.identity or {}))
            case _:
                batcher.drop(video_id)
        yield from self._finished()

    def flush(self) -> Iterator[Result]:
        """Results of all videos that have ended: no frames will come for a while."""
        self.batcher.flush()
        yield from self._finished()

    def _finished(self) -> Iterator[Result]:
        for video_id, result in self.batcher.take_finished():
            job = self.jobs.pop(video_id)
            yield failure_of(job, result.reason, str(result)) if isinstance(result, VideoError) else result


class Decoder(Protocol):
    """A GuardedDecoder, or many behind the same face."""

    def events(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """What happens to the jobs."""


def encode_jobs(assembler: Assembler, decoder: Decoder, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results of all jobs, each as soon as it is ready; a job may overtake one whose last batch is not yet full."""
    for job, event in decoder.events(jobs):
        yield from assembler.take(job, event)
    yield from assembler.flush()


def in_process_results(encoder: Encoder, limits: Limits, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results with the tower in this process (`--workers 0`) and the decoder in a guarded one beside it."""
    with GuardedDecoder(encoder.read_spec, limits) as decoder:
        yield from encode_jobs(Assembler(encoder), decoder, jobs)


class FusedWorker:
    """A Ray actor with a tower and a decoder beside it: frames never go through the object store."""

    def __init__(self, config: EncodeConfig, limits: Limits) -> None:
        encoder = Encoder(config)
        self.assembler = Assembler(encoder)
        self.decoder = GuardedDecoder(encoder.read_spec, limits)

    def where(self) -> tuple[str, int]:
        """Host and process id; answered once the tower is loaded."""
        return socket.gethostname(), os.getpid()

    def results(self, jobs: list[Job]) -> Iterator[Result]:
        """Results of the jobs as they are ready."""
        yield from encode_jobs(self.assembler, self.decoder, jobs)
