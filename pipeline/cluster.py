"""The Ray cluster of a job: an existing one, or one of just enough cores in this machine; and the pool that fits it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray
import torch
from ray.exceptions import AuthenticationError
from ray.util.metrics import Counter

from pipeline.decoding import Limits
from pipeline.ledger import CACHED, Failure
from pipeline.ray_actors import RayActors, live_nodes, require_answer
from pipeline.supervisor import Supervisor
from pipeline.workers import Result
from unloc.errors import UnlocError
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.model.frame_tokens import CPU_BATCH, GPU_BATCH

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(address: str | None, workers: int, encoders: int | None) -> Iterator[None]:
    """A Ray connection for the time of the job. Raises UnlocError where there is no cluster at the address."""
    own, on_termination = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if own and address is None:
        # "local", else Ray would join whatever cluster runs in this machine.
        ray.init(address="local", num_cpus=own_cpus(workers, encoders), include_dashboard=False, **QUIET)
    elif own:
        _join(address)
    if own and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray's would end this process where it stands
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _join(address: str) -> None:
    try:
        require_answer(address)
    except OSError as error:
        raise UnlocError(f"--address {address}: no Ray cluster there ({error}); start one: ray start --head") from None
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, AuthenticationError):
        raise UnlocError(
            f"--address {address}: no Ray cluster there accepts this process; where one runs, it wants its token (set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the head node's ~/.ray/auth_token) or is of another version"
        ) from None
    except ValueError as error:
        raise UnlocError(f"--address {address}: {' '.join(str(error).split())[:160]}") from None


def own_cpus(workers: int, encoders: int | None) -> int:
    """CPUs that a Ray of one's own is given; for -1 workers: those that this process may use, encoders included."""
    if workers == -1:
        return len(os.sched_getaffinity(0))
    return workers + (local_accelerators() if encoders is None else encoders)


def local_accelerators() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def suited_to_device(
    config: EncodeConfig, encoders: int | None, *, on_cluster: bool
) -> tuple[EncodeConfig, torch.device]:
    """The settings with a batch that suits what encodes, and where this process encodes texts.

    Encoders have the GPUs of the cluster that was joined, without one those of this machine.
    """
    num_gpus = sum(node.gpus for node in live_nodes()) if on_cluster else local_accelerators()
    on_gpu = encoders != 0 and num_gpus > 0
    batch = config.batch or (GPU_BATCH if on_gpu else CPU_BATCH)
    return replace(config, batch=batch), resolve_device("auto" if on_gpu else "cpu")


def counted(results: Iterator[Result]) -> Iterator[Result]:
    """The results, counted in Ray's own metrics: videos by what became of them, and frames."""
    videos = Counter("unloc_extract_videos", "Videos by what became of them.", tag_keys=("status",))
    frames = Counter("unloc_extract_frames", "Frames encoded.")
    for result in results:
        if isinstance(result, Failure):
            videos.inc(tags={"status": result.reason})
        else:
            videos.inc(tags={"status": CACHED})
            frames.inc(len(result.tokens))
        yield result


def make_pool(encoder: Encoder, limits: Limits, workers: int, encoders: int | None) -> Supervisor:
    """A pool on the connected cluster. Every actor computes on one thread, so that actors are cores."""
    actors = RayActors(encoder.config, encoder.read_spec, limits)
    return Supervisor(actors, workers, encoders, limits.timeout_seconds)
