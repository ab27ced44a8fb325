"""The Ray cluster of a job: an existing one, or one of just enough cores in this machine; and the pool that fits it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from pipeline.decoding import Limits
from pipeline.split_workers import split_worker
from pipeline.worker_pool import WorkerPool, fused_worker
from unloc.errors import UnlocError
from unloc.inference.encode import EncodeConfig

CONNECT_SECONDS = 10.0
MAX_GROUP = 8  # videos handed to a fused worker at once: short ones share batches
MAX_SPLIT_GROUP = 512  # and to an encoder with many decoders, which must not run dry


@contextmanager
def connected(address: str | None, workers: int, encoders: int | None) -> Iterator[None]:
    """A Ray connection for the time of the job. Raises UnlocError where there is no cluster at the address."""
    own = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if own and address is None:
            # "local", else Ray would join whatever cluster runs in this machine.
            num_cpus = cores_for(workers) + (local_accelerators() if encoders is None else encoders)
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        elif own:
            _require_answer(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        words = " ".join(str(error).split())[:160]
        raise UnlocError(f"--address {address}: no Ray cluster there ({words}); start one: ray start --head") from None
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray itself would wait a minute and then end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def cores_for(workers: int) -> int:
    """Workers asked for; -1: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if workers == -1 else workers


def local_accelerators() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of the connected cluster."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def make_pool(config: EncodeConfig, limits: Limits, workers: int, encoders: int | None, num_jobs: int) -> WorkerPool:
    """Encoders on accelerators with decoders beside them where the cluster has some, else fused workers.

    `workers` -1: one for each CPU of the cluster. Every worker computes on one thread, so that workers are cores.
    """
    num_cpus, num_gpus = cluster_size()
    num_workers = max(1, min(num_cpus if workers == -1 else workers, num_jobs))
    num_encoders = num_gpus if encoders is None else encoders
    if num_encoders == 0:
        return WorkerPool(fused_worker(config, limits), num_workers, MAX_GROUP)
    num_encoders = min(num_encoders, num_workers)
    per_encoder = -(-num_workers // num_encoders)
    return WorkerPool(
        split_worker(config, limits, per_encoder, on_gpu=num_gpus >= num_encoders), num_encoders, MAX_SPLIT_GROUP
    )
