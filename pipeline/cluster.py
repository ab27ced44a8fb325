"""The Ray cluster of a job: an existing one, or one of just enough cores in this machine; and the pool that fits it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from pipeline.decoding import Limits
from pipeline.ray_actors import RayActors, require_answer
from pipeline.supervisor import Supervisor
from unloc.errors import UnlocError
from unloc.inference.encode import Encoder


@contextmanager
def connected(address: str | None, workers: int, encoders: int | None) -> Iterator[None]:
    """A Ray connection for the time of the job. Raises UnlocError where there is no cluster at the address."""
    own, on_termination = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if own and address is None:
            # "local", else Ray would join whatever cluster runs in this machine.
            ray.init(address="local", num_cpus=own_cpus(workers, encoders), include_dashboard=False, **quiet)
        elif own:
            require_answer(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        words = " ".join(str(error).split())[:160]
        raise UnlocError(f"--address {address}: no Ray cluster there ({words}); start one: ray start --head") from None
    if own and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray's would end this process where it stands
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def own_cpus(workers: int, encoders: int | None) -> int:
    """CPUs that a Ray of one's own is given; for -1 workers: those that this process may use, encoders included."""
    if workers == -1:
        return len(os.sched_getaffinity(0))
    return workers + (local_accelerators() if encoders is None else encoders)


def local_accelerators() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def make_pool(encoder: Encoder, limits: Limits, workers: int, encoders: int | None) -> Supervisor:
    """A pool on the connected cluster. Every actor computes on one thread, so that actors are cores."""
    actors = RayActors(encoder.config, encoder.read_spec, limits)
    return Supervisor(actors, workers, encoders, limits.timeout_seconds)
