"""The Ray cluster of a job: an existing one, or a local one with just enough cores."""

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

from pipeline.ledger import CACHED
from pipeline.ray_actors import live_nodes, require_answer
from pipeline.workers import Result
from unloc.cache.shards import Failure
from unloc.errors import UnlocError
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig
from unloc.model.towers import CPU_BATCH, GPU_BATCH

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(address: str | None, workers: int, encoders: int | None) -> Iterator[None]:
    """A Ray connection, unless there is one already. Raises UnlocError where there is no cluster at the address."""
    if ray.is_initialized():
        yield
        return
    on_termination = signal.getsignal(signal.SIGTERM)
    if address is None:
        # "local", otherwise Ray would join any cluster that runs on this machine.
        ray.init(address="local", num_cpus=local_cpus(workers, encoders), include_dashboard=False, **QUIET)
    else:
        try:
            require_answer(address)
            ray.init(address=address, **QUIET)
        except (OSError, ValueError, AuthenticationError) as error:
            raise UnlocError(
                f"--address {address}: no Ray cluster there ({' '.join(str(error).split())[:160]}); start one with "
                "`ray start --head`; one that runs may be of another version, or need its token (set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the head node's ~/.ray/auth_token)"
            ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray's handler would end this process at once
    try:
        yield
    finally:
        ray.shutdown()


def local_cpus(workers: int, encoders: int | None) -> int:
    """CPUs of a local Ray; for -1 workers: those that this process may use, encoders included."""
    if workers == -1:
        return len(os.sched_getaffinity(0))
    return workers + (torch.cuda.device_count() if encoders is None else encoders)


def suited_to_device(
    config: EncodeConfig, encoders: int | None, *, on_cluster: bool
) -> tuple[EncodeConfig, torch.device]:
    """The settings with a batch size for the device that encodes, and the device on which this process encodes texts.

    `on_cluster`: encoders use the GPUs of the connected cluster; otherwise those of this machine.
    """
    num_gpus = sum(node.gpus for node in live_nodes()) if on_cluster else torch.cuda.device_count()
    on_gpu = encoders != 0 and num_gpus > 0
    batch = config.batch or (GPU_BATCH if on_gpu else CPU_BATCH)
    return replace(config, batch=batch), resolve_device("auto" if on_gpu else "cpu")


def counted(results: Iterator[Result]) -> Iterator[Result]:
    """The results, counted in Ray's metrics: videos by status, and frames."""
    videos = Counter("unloc_extract_videos", "Videos by status.", tag_keys=("status",))
    frames = Counter("unloc_extract_frames", "Frames encoded.")
    for result in results:
        if isinstance(result, Failure):
            videos.inc(tags={"status": result.reason})
        else:
            videos.inc(tags={"status": CACHED})
            frames.inc(len(result.tokens))
        yield result
