"""What workers do: jobs in, results out as they are ready. The same code runs in this process and in Ray actors."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from pipeline.decoding import MACHINE, Ended, GuardedDecoder, Job, Limits, Retried
from pipeline.shared_batches import BusyClock, SharedBatches
from unloc.cache.shards import Failure, Result
from unloc.cache.writing import VideoTokens
from unloc.errors import UnlocError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder, EncodingCall, PixelEncoder, encode_frames, may_mix
from unloc.video.reading import CHANGED, ReadSpec
from unloc.video.video_file import RemoteVideo, VideoFile, file_hash, file_identity

FRAMES_PER_CALL = 64  # sent at once to an encoder in another process
CALLS_AHEAD = 4  # that a decoder may have running there
MAX_NODE_FAILURES = 5  # without a finished video in between; then a machine gets no more videos


@dataclass(frozen=True)
class EncoderLost:
    """The encoder in another process failed; the remaining jobs of the group are not done."""

    message: str


def encode_jobs(encoder: PixelEncoder, decoder: GuardedDecoder, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results of all jobs, each as soon as it is ready: a job may finish before one whose last batch is not full."""

    def events() -> Iterator[tuple[Job, object]]:
        for job, event in decoder.events(jobs):
            yield job, event.row if isinstance(event, Ended) else event

    for job, result in encode_frames(encoder, events()):
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
    """Results with the tower in this process (`--workers 0`) and the decoder in a guarded child process.

    An occasional failure of this machine is a Failure with the reason MACHINE; UnlocError where it keeps failing.
    """
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

    def results(self, jobs: list[Job], encode_worker: ActorHandle | None) -> Iterator[Result | EncoderLost]:
        """Results of the jobs as they are ready; EncoderLost ends them early."""
        encoder = self.encoder or RemoteEncoder(self.config, self.clock, encode_worker)
        self.clock.start()
        try:
            for result in encode_jobs(encoder, self.decoder, jobs):
                self.clock.stop()  # until the driver takes the result
                yield result
                self.clock.start()
        except RayError as error:
            self.decoder.close()
            yield EncoderLost(last_line(error))
        finally:
            self.clock.stop()


def last_line(error: Exception) -> str:
    """The last line of an error's message."""
    if isinstance(error, RayTaskError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1][:200] if lines else ""
    return message if isinstance(error, UnlocError | RayError) else f"{type(error).__name__}: {message}"
