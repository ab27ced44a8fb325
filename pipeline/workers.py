"""Workers: jobs in, results out as they are ready. The same code in this process and in every Ray actor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.decode_child import MACHINE, Broken, Ended, Frames, Job, Opened
from pipeline.decoding import Event, GuardedDecoder, Limits
from pipeline.ledger import Failure
from pipeline.shared_batches import Pulse, SharedBatches
from unloc.cache.writing import VideoTokens
from unloc.errors import UnlocError, VideoError
from unloc.inference.batching import EncodingCall, FrameBatcher, PixelEncoder, is_same_in_any_place
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.reading import CHANGED, ReadSpec, file_identity
from unloc.video.remote_video import RemoteVideo
from unloc.video.tar_shards import VideoFile

Result = VideoTokens | Failure
FRAMES_SENT = 64  # at once to an encoder in another process
BATCHES_AHEAD = 4  # that a worker may have on their way there
READ_BYTES = 1 << 20
MAX_STRIKES = 5  # failures of one machine, with no video done in between, before it gets no more


@dataclass(frozen=True)
class EncoderLost:
    """The encoder in another process failed; the jobs that the worker still had are not done."""

    words: str


def id_of(result: Result) -> str:
    """Which video a result is of."""
    return result.video_id if isinstance(result, Failure) else result.meta["video_id"]


def failure_of(job: Job, reason: str, message: str, attempts: int = 1) -> Failure:
    """A failure with what tells later whether the file has changed.

    Its reason is MACHINE where this process cannot even read the file's bytes.
    """
    try:
        require_readable(job.path)
    except OSError as error:
        reason, message = MACHINE, f"{message} ({job.path}: {error.strerror or error})"
    return Failure(job.video_id, reason, message, attempts, **file_identity(job.path))


def require_readable(file: VideoFile) -> None:
    """Read all bytes of a file, and none of one that is fetched before it is decoded. Raises OSError."""
    if not isinstance(file, RemoteVideo):
        with file.open("rb") as handle:
            while handle.read(READ_BYTES):
                pass


def own_failure(job: Job, failure: Failure) -> Failure | None:
    """The failure as the video's own; None where it is its worker's machine's, as this process reads the file well."""
    file = job.path
    if failure.reason != MACHINE:
        # A machine that sees another size sees another file, or an empty one where something should be mounted.
        is_plain = failure.reason != CHANGED and not isinstance(file, RemoteVideo)
        here = file_identity(file).get("file_bytes")
        return None if is_plain and here is not None and here != failure.file_bytes else failure
    try:
        if isinstance(file, RemoteVideo):
            file.current()
        require_readable(file)
    except VideoError as error:
        return replace(failure, reason=error.reason, message=str(error))
    except OSError as error:
        if isinstance(file, RemoteVideo):
            return None
        reason = "not_found" if isinstance(error, FileNotFoundError) else "unreadable"
        return replace(failure, reason=reason, message=f"{file}: cannot be read ({error.strerror or error})")
    return None


class Assembler:
    """Turns what happens to jobs into results: frames into tokens, errors into failures."""

    def __init__(self, encoder: PixelEncoder) -> None:
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


def encode_jobs(assembler: Assembler, decoder: GuardedDecoder, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results of all jobs, each as soon as it is ready; a job may overtake one whose last batch is not yet full."""
    for job, event in decoder.events(jobs):
        yield from assembler.take(job, event)
    yield from assembler.flush()


def in_process_results(encoder: Encoder, limits: Limits, jobs: Iterable[Job]) -> Iterator[Result]:
    """Results with the tower in this process (`--workers 0`) and the decoder in a guarded one beside it.

    Raises UnlocError where this machine keeps failing; a failure of its own now and then has the reason MACHINE.
    """
    by_id, strikes = {}, 0
    with GuardedDecoder(encoder.read_spec, limits) as decoder:
        for result in encode_jobs(Assembler(encoder), decoder, (by_id.setdefault(job.video_id, job) for job in jobs)):
            if isinstance(result, Failure) and result.reason == MACHINE:
                failure = own_failure(by_id[result.video_id], result)
                strikes += failure is None
                if strikes == MAX_STRIKES:
                    words = "mend that, run the same again: nothing is kept against the videos"
                    raise UnlocError(f"this machine keeps failing: {result.message}; {words}")
                yield failure or result
            else:
                strikes = 0
                yield result


class RemoteEncoder:
    """An EncodeWorker in another process, as a FrameBatcher wants it. Frames are put into batches there."""

    batch, batches_ahead, mixes = FRAMES_SENT, BATCHES_AHEAD, False

    def __init__(self, config: EncodeConfig, pulse: Pulse) -> None:
        self.config, self.pulse = config, pulse
        self.actor: ray.actor.ActorHandle | None = None

    def start_encoding(self, pixels: np.ndarray) -> EncodingCall:
        """Send the pixels; the call waits for the tokens. Both raise RayError where the encoder fails."""
        tokens = self.actor.encode.remote(pixels)

        def wait() -> tuple[np.ndarray, float]:
            self.pulse.rest()
            try:
                return ray.get(tokens)
            finally:
                self.pulse.beat()

        return wait


class EncodeWorker:
    """A Ray actor that encodes what workers send it, in full batches of whatever has come."""

    def __init__(self, config: EncodeConfig, device: str) -> None:
        self.config, self.device, self.pulse = config, device, Pulse()
        self.batches: SharedBatches | None = None

    @ray.method(concurrency_group="control")
    def ping(self) -> float:
        """Seconds for which it has been at one batch."""
        return self.pulse.seconds()

    def load(self) -> str:
        """Make the tower ready; the device that it computes on, which is no GPU where PyTorch sees none."""
        device = self.device if torch.cuda.is_available() else "cpu"
        encoder = Encoder(self.config, resolve_device(device))
        size = encoder.preprocess.image_size
        trial = np.random.default_rng(0).integers(0, 255, (1, len(self.config.views), 3, size, size), dtype=np.uint8)
        self.batches = SharedBatches(encoder, self.pulse, mixes=is_same_in_any_place(encoder, trial))
        return device

    @ray.method(concurrency_group="frames")
    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """Tokens of some frames, and the seconds that they took."""
        return self.batches.encode(pixels)


class VideoWorker:
    """A Ray actor that decodes, and encodes itself (frames stay in it) or sends its frames to an EncodeWorker."""

    def __init__(self, config: EncodeConfig, spec: ReadSpec, limits: Limits) -> None:
        self.config, self.spec, self.limits, self.pulse = config, spec, limits, Pulse()
        self.encoder: Encoder | RemoteEncoder | None = None
        self.assembler: Assembler | None = None
        self.decoder: GuardedDecoder | None = None

    @ray.method(concurrency_group="control")
    def ping(self) -> float:
        """Seconds since the last event of a video, while this actor has to bring about the next one."""
        return self.pulse.seconds()

    def load(self, *, encodes: bool) -> str:
        """Make the tower ready, if this worker is to have one; the device that it computes on."""
        self.encoder = Encoder(self.config) if encodes else RemoteEncoder(self.config, self.pulse)
        self._begin()
        return "cpu"

    def _begin(self) -> None:
        self.assembler, self.decoder = Assembler(self.encoder), GuardedDecoder(self.spec, self.limits, self.pulse.beat)

    def results(self, jobs: list[Job], encode_worker: ray.actor.ActorHandle | None) -> Iterator[Result | EncoderLost]:
        """Results of the jobs as they are ready; EncoderLost ends them early."""
        if encode_worker is not None:
            self.encoder.actor = encode_worker
        self.pulse.beat()
        try:
            for job, event in self.decoder.events(jobs):
                self.pulse.beat()
                yield from self._given(self.assembler.take(job, event))
            yield from self._given(self.assembler.flush())
        except RayError as error:
            self.decoder.close()
            self._begin()
            yield EncoderLost(last_line(error))
        finally:
            self.pulse.rest()

    def _given(self, results: Iterator[Result]) -> Iterator[Result]:
        for result in results:
            self.pulse.rest()  # the driver takes them when it can
            yield result
            self.pulse.beat()


def last_line(error: Exception) -> str:
    """An error's words on one line."""
    if isinstance(error, RayTaskError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[-1][:200] if lines else ""
    return words if isinstance(error, UnlocError | RayError) else f"{type(error).__name__}: {words}"
