"""The Ray cluster of a job: an existing one, or one of just enough cores in this machine; and the pool that fits it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipeline.decode_child import Job
from pipeline.decoding import Limits
from pipeline.fused_pool import FusedPool
from pipeline.workers import Result
from unloc.errors import UnlocError
from unloc.inference.encode import EncodeConfig


@contextmanager
def connected(address: str | None, workers: int, encoders: int) -> Iterator[None]:
    """A Ray connection for the time of the job. Raises UnlocError where there is no cluster at the address."""
    own = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if own and address is None:
            ray.init(num_cpus=workers + encoders, include_dashboard=False, **quiet)
        elif own:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        words = " ".join(str(error).split())[:160]
        raise UnlocError(f"--address {address}: no Ray cluster there ({words}); start one: ray start --head") from None
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def pool_results(
    config: EncodeConfig, limits: Limits, workers: int, encoders: int | None, jobs: list[Job]
) -> Iterator[Result]:
    """Results of all jobs, from encoders on accelerators where the cluster has some, else from fused workers."""
    num_workers = min(workers, len(jobs))
    return FusedPool(config, limits, num_workers).results(jobs)
