"""What workers do: jobs in, results out as they are ready. The same code runs in this process and in Ray actors."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from pipeline.decoding import MACHINE, GuardedDecoder, Job, Limits, Retried
from unloc.cache.shards import Failure, Result
from unloc.cache.writing import VideoTokens
from unloc.errors import UnlocError, VideoError
from unloc.files import file_identity
from unloc.inference.encode import EncodeConfig, Encoder, EncodingCall, PixelEncoder, encode_frames, may_mix
from unloc.video.reading import CHANGED, ReadSpec
from unloc.video.video_file import RemoteVideo, VideoFile, file_hash

FRAMES_PER_CALL = 64  # sent at once to an encoder in another process
CALLS_AHEAD = 4  # that a decoder may have running there
BATCHES_RUNNING = 2  # in an encoder: one computes while the next is put together and copied
ENCODER_ERRORS = (RuntimeError, ValueError)  # torch's, such as out of memory: passed on to the callers
MAX_NODE_FAILURES = 5  # without a finished video in between; then a machine gets no more videos


def encode_jobs(encoder: PixelEncoder, decoder: GuardedDecoder, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results of all jobs, each as soon as it is ready: a job may finish before one whose last batch is not full."""
    for job, result in encode_frames(encoder, decoder.events(jobs)):
        if isinstance(result, VideoError):
            result = Failure(job.video_id, result.reason, str(result))
        if not isinstance(result, Retried):
            yield completed_failure(job, result) if isinstance(result, Failure) else result


def completed_failure(job: Job, failure: Failure) -> Failure:
    """The failure with the file's identity; its reason is MACHINE if this process cannot even read the file."""
    if failure.file_bytes is None:
        failure = replace(failure, **file_identity(job.path))
    try:
        require_readable(job.path)
    except OSError as error:
        message = f"{failure.message} ({job.path}: {error.strerror or error})"
        failure = replace(failure, reason=MACHINE, message=message)
    return failure


def require_readable(file: VideoFile) -> None:
    """Read all bytes of a local file. Raises OSError."""
    if not isinstance(file, RemoteVideo):
        with suppress(VideoError):  # a tar file that ends early
            file_hash(file)


def video_failure(job: Job, failure: Failure) -> Failure | None:
    """The failure of a worker if the video caused it; None if its machine did: this process reads the file well."""
    file, is_remote = job.path, isinstance(job.path, RemoteVideo)
    if failure.reason != MACHINE:
        # A worker that saw another size had another file, or an empty one where something should be mounted.
        size = None if is_remote or failure.reason == CHANGED else file_identity(file).get("file_bytes")
        return failure if size in (None, failure.file_bytes) else None
    try:
        if is_remote:
            file.current()
        require_readable(file)
    except VideoError as error:
        return replace(failure, reason=error.reason, message=str(error))
    except OSError as error:
        if not is_remote:
            reason = "not_found" if isinstance(error, FileNotFoundError) else "unreadable"
            return replace(failure, reason=reason, message=f"{file}: cannot be read ({error.strerror or error})")
    return None


def in_process_results(encoder: Encoder, limits: Limits, jobs: list[Job]) -> Iterator[Result]:
    """Results with the tower in this process (`--workers 0`). Raises UnlocError where this machine keeps failing."""
    by_id, num_failures = {job.video_id: job for job in jobs}, 0
    with GuardedDecoder(encoder.read_spec, limits) as decoder:
        for result in encode_jobs(encoder, decoder, jobs):
            if isinstance(result, VideoTokens):
                num_failures = 0
            elif result.reason == MACHINE:
                failure = video_failure(by_id[result.video_id], result)
                num_failures += failure is None
                if num_failures == MAX_NODE_FAILURES:
                    advice = "fix it and run the same command again: no video was marked as failed for it"
                    raise UnlocError(f"this machine keeps failing: {result.message}; {advice}")
                result = failure or result
            yield result


class BusyClock:
    """How long an actor has been busy with one step; waiting for others does not count."""

    since = math.inf

    def start(self) -> None:
        """A step begins."""
        self.since = time.monotonic()

    def stop(self) -> None:
        """The actor waits for others."""
        self.since = math.inf

    def seconds(self) -> float:
        """Since the step began; 0 while waiting."""
        return max(0.0, time.monotonic() - self.since)


@dataclass(eq=False)
class _Request:
    pixels: np.ndarray
    answer: Future = field(default_factory=Future)
    num_started: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0


_Part = tuple[_Request, int, int]  # frames start to stop of a request


class SharedBatches:
    """Frames of calls from many threads in full batches of one encoder, of one call each unless the encoder `mixes`."""

    def __init__(self, encoder: PixelEncoder) -> None:
        self.encoder = encoder
        self._arrived: SimpleQueue[_Request] = SimpleQueue()
        self._running: SimpleQueue[tuple[list[_Part], EncodingCall]] = SimpleQueue()
        self._free_places = threading.Semaphore(BATCHES_RUNNING)
        self._starting, self._waiting = BusyClock(), BusyClock()
        for target in (self._start_batches, self._finish_batches):
            threading.Thread(target=target, daemon=True).start()

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """(N, views, D) float32 tokens of pixels (N, views, 3, S, S) uint8, and the seconds that they took."""
        request = _Request(pixels)
        self._arrived.put(request)
        return request.answer.result()

    def seconds_busy(self) -> float:
        """How long the oldest running batch has taken so far; 0 where none runs."""
        return max(self._starting.seconds(), self._waiting.seconds())

    def _start_batches(self) -> None:
        requests: deque[_Request] = deque()
        while True:
            if not requests:
                requests.append(self._arrived.get())
            self._free_places.acquire()
            while not self._arrived.empty():
                requests.append(self._arrived.get())
            parts, room = [], self.encoder.batch
            while requests and room and (self.encoder.mixes or not parts):
                request = requests[0]
                start, stop = request.num_started, min(request.num_started + room, len(request.pixels))
                parts.append((request, start, stop))
                request.num_started, room = stop, room - (stop - start)
                if stop == len(request.pixels):
                    requests.popleft()
            self._starting.start()
            try:
                pixels = np.concatenate([request.pixels[start:stop] for request, start, stop in parts])
                self._running.put((parts, self.encoder.start_encoding(pixels)))
            except ENCODER_ERRORS as error:
                self._fail(parts, error)
            self._starting.stop()
            requests = deque(request for request in requests if not request.answer.done())

    def _finish_batches(self) -> None:
        while True:
            parts, call = self._running.get()
            self._waiting.start()
            try:
                tokens, seconds = call()
            except ENCODER_ERRORS as error:
                self._fail(parts, error)
            else:
                first = 0
                for request, start, stop in parts:
                    request.tokens.append(tokens[first : first + stop - start])
                    request.seconds += seconds * (stop - start) / len(tokens)
                    first += stop - start
                    if stop == len(request.pixels) and not request.answer.done():
                        request.answer.set_result((np.concatenate(request.tokens), request.seconds))
                self._free_places.release()
            self._waiting.stop()

    def _fail(self, parts: list[_Part], error: Exception) -> None:
        for request, *_ in parts:
            if not request.answer.done():
                request.answer.set_exception(error)
        self._free_places.release()


class RemoteEncoder:
    """An EncodeWorker in another process, as `encode_frames` needs it. Batches are put together there."""

    batch, batches_ahead, mixes = FRAMES_PER_CALL, CALLS_AHEAD, False

    def __init__(self, config: EncodeConfig, clock: BusyClock, actor: ActorHandle) -> None:
        self.config, self.clock, self.actor = config, clock, actor

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Send the pixels; the call waits for the tokens. Both raise RayError where the encoder fails."""
        tokens = self.actor.encode.remote(pixels)

        def wait() -> tuple[np.ndarray, float]:
            self.clock.stop()
            try:
                return ray.get(tokens)
            finally:
                self.clock.start()

        return wait


class EncodeWorker:
    """A Ray actor that encodes the frames of many decoders in full batches."""

    def __init__(self, config: EncodeConfig, device: str) -> None:
        self.config, self.device = config, device
        self.batches: SharedBatches | None = None

    @ray.method(concurrency_group="control")
    def ping(self) -> float:
        """Seconds that the current batch has taken so far."""
        return self.batches.seconds_busy() if self.batches else 0.0

    def load(self) -> str:
        """Load the tower; the device that it computes on, which is the CPU where PyTorch sees no GPU."""
        device = self.device if torch.cuda.is_available() else "cpu"
        encoder = Encoder(self.config, device)
        size = encoder.preprocess.image_size
        trial = np.random.default_rng(0).integers(0, 255, (1, len(self.config.views), 3, size, size), dtype=np.uint8)
        may_mix(encoder, trial)
        self.batches = SharedBatches(encoder)
        return device

    @ray.method(concurrency_group="frames")
    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """Tokens of some frames, and the seconds that they took."""
        return self.batches.encode(pixels)


class VideoWorker:
    """A Ray actor that decodes, and encodes itself (frames stay in it) or sends its frames to an EncodeWorker."""

    def __init__(self, config: EncodeConfig, spec: ReadSpec, limits: Limits) -> None:
        self.config, self.clock = config, BusyClock()
        self.decoder = GuardedDecoder(spec, limits, on_message=self.clock.start)
        self.encoder: Encoder | None = None

    @ray.method(concurrency_group="control")
    def ping(self) -> float:
        """Seconds without progress; 0 while it waits for the driver or the encoder."""
        return self.clock.seconds()

    def load(self, *, encodes: bool) -> str:
        """Load the tower, if this worker encodes; the device that it computes on."""
        self.encoder = Encoder(self.config) if encodes else None
        return "cpu"

    def results(self, jobs: list[Job], encode_worker: ActorHandle | None) -> Iterator[Result | str]:
        """Results of the jobs as they are ready; the message of an encoder that failed ends them early."""
        encoder = self.encoder or RemoteEncoder(self.config, self.clock, encode_worker)
        self.clock.start()
        try:
            for result in encode_jobs(encoder, self.decoder, jobs):
                self.clock.stop()  # until the driver takes the result
                yield result
                self.clock.start()
        except RayError as error:
            self.decoder.close()
            yield last_line(error)
        finally:
            self.clock.stop()


def last_line(error: Exception) -> str:
    """The last line of an error's message."""
    if isinstance(error, RayTaskError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1][:200] if lines else ""
    return message if isinstance(error, UnlocError | RayError) else f"{type(error).__name__}: {message}"
