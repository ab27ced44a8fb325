"""All calls to Ray: the cluster of a job, an existing one or a local one with just enough cores, and its actors."""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.decoding import Job, Limits
from pipeline.workers import EncodeWorker, Result, VideoWorker, last_line
from unloc.errors import UnlocError, one_line
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig
from unloc.model.towers import CPU_BATCH, GPU_BATCH
from unloc.video.reading import ReadSpec

PING_SECONDS = 2.0
GET_SECONDS = 60.0  # for a ready object to reach this process
CONNECT_SECONDS = 10.0
ENDED_BY_RAY = (
    "error: Ray ended this process, as its own process on this machine (raylet) has died, or it was killed; finished "
    "work is kept: run the same command again (fit: with --resume)"
)
RESULTS_AHEAD = 8  # of one actor that may wait in the object store
CALLS_AT_ONCE = 256  # of decoders to one encoder, which puts their frames into batches; more wait in Ray
VIDEO_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1})(VideoWorker)  # answers while it works
ENCODE_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1, "frames": CALLS_AT_ONCE})(EncodeWorker)
Role = Literal["worker", "decoder", "encoder"]  # what an actor does; a worker decodes and encodes
STREAM = {"num_returns": "streaming", "_generator_backpressure_num_objects": RESULTS_AHEAD}


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How the job runs; nothing here changes a token."""

    workers: int = 1  # Ray actors that decode; 0: this process and one that decodes; -1: one for each CPU
    encoders: int | None = None  # Ray actors that only encode; 0: workers encode too; None: one per GPU of the cluster
    address: str | None = None  # of an existing Ray cluster; None starts a local one
    limits: Limits = field(default_factory=Limits)
    shard_size: int = 512  # most videos in a shard; one of more than SHARD_BYTES is split
    retry_failed: bool = False  # even if their file has not changed
    refresh: tuple[str, ...] = ()  # ids of cached videos to extract again; `changed`: all whose file has changed

    @property
    def uses_cluster(self) -> bool:
        """Does the job run on an existing Ray cluster?"""
        return self.address is not None and self.workers != 0


@contextmanager
def connected(options: ExtractOptions) -> Iterator[None]:
    """A Ray connection, unless there is one already. Raises UnlocError where there is no cluster at the address."""
    if ray.is_initialized():
        yield
        return
    on_termination = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        with StartErrors():  # "local", otherwise Ray would join any cluster that runs on this machine
            ray.init(address="local", num_cpus=nodes_for(options)[0].cpus, include_dashboard=False, **quiet)
    else:
        try:
            require_answer(options.address)
            ray.init(address=options.address, **quiet)
        except (OSError, ValueError, AuthenticationError) as error:
            problem = f"--address {options.address}: no Ray cluster there ({one_line(error)})"
            advice = "start one with `ray start --head`; one that runs may be of another version, or need its token"
            token = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the head node's ~/.ray/auth_token"
            raise UnlocError(f"{problem}; {advice} ({token})") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray's handler would end this process at once
    # Ray also ends this process at once when its raylet has died and a result arrives: nothing here could say so.
    print_unless_done = ["sh", "-c", 'read done || echo "$0" >&2', ENDED_BY_RAY]
    watcher = subprocess.Popen(print_unless_done, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        ray.shutdown()
        watcher.communicate(b"done\n")


class StartErrors(AbstractContextManager):
    """UnlocError where Ray's processes do not start in time, for which Ray raises a bare Exception."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is Exception:
            advice = "too busy a machine? try again, or use --workers 0"
            raise UnlocError(f"Ray did not start here ({one_line(error)}); {advice}") from None


def require_answer(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray itself would wait for a minute and end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


class Node(NamedTuple):
    """A machine of the cluster, as Ray counts it."""

    node_id: str
    name: str
    cpus: int
    gpus: int


def live_nodes() -> list[Node]:
    """Machines of the connected cluster."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            name, resources = f"{node['NodeManagerHostname']} (node {node['NodeID'][:6]})", node["Resources"]
            nodes.append(Node(node["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("GPU", 0))))
    return nodes


def nodes_for(options: ExtractOptions) -> list[Node]:
    """Machines of the connected cluster, or this one with the CPUs that a local Ray gets."""
    if options.uses_cluster:
        return live_nodes()
    workers, encoders, gpus = options.workers, options.encoders, torch.cuda.device_count()
    # -1: those that this process may use, encoders included.
    cpus = len(os.sched_getaffinity(0)) if workers == -1 else workers + (gpus if encoders is None else encoders)
    return [Node("", "", cpus, gpus)]


def suited_to_device(config: EncodeConfig, options: ExtractOptions) -> tuple[EncodeConfig, torch.device]:
    """The settings with a batch size for the device that encodes, and the device of this process, for texts."""
    on_gpu = options.encoders != 0 and any(node.gpus for node in nodes_for(options))
    batch = config.batch or (GPU_BATCH if on_gpu else CPU_BATCH)
    return replace(config, batch=batch), resolve_device("auto" if on_gpu else "cpu")


class Event(NamedTuple):
    """What an actor reports."""

    actor: ActorHandle
    kind: str  # it has loaded, is alive, has a result, has finished its group; raised an error, or died
    value: str | float | Result | None = None  # its device; seconds without progress; result or lost encoder; message


class RayActors:
    """Processes on the connected Ray cluster, and the time; tests of the supervisor simulate both."""

    clock = staticmethod(time.monotonic)

    def __init__(self, config: EncodeConfig, spec: ReadSpec, limits: Limits) -> None:
        self.config, self.spec, self.limits = config, spec, limits
        # Running calls: the actor, and the kind of event that the answer is (loaded, alive or result).
        self._calls: dict[ray.ObjectRef | ray.ObjectRefGenerator, tuple[ActorHandle, str]] = {}
        self._pinged_at: dict[ActorHandle, float] = {}
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        # Addresses without which this process cannot continue.
        self._needed = {
            f"the Ray cluster at {context.gcs_address} is gone": context.gcs_address,
            "Ray's process on this machine (raylet) has ended": f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}",
        }

    def nodes(self) -> list[Node]:
        """Machines that are alive. Raises UnlocError where the cluster is gone: Ray itself would end this process."""
        for lost, address in self._needed.items():
            try:
                require_answer(address)
            except OSError as error:
                raise UnlocError(f"{lost} ({last_line(error)}); run the same command again") from None
        try:
            return live_nodes()
        except RayError as error:
            raise UnlocError(f"the Ray cluster is gone ({last_line(error)}); run the same command again") from None

    def start(self, role: Role, node: Node, *, num_cpus: int, num_gpus: int) -> ActorHandle:
        """Start an actor on a node."""
        affinity = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": affinity}
        if role == "encoder":
            actor = ENCODE_ACTOR.options(**resources).remote(self.config, "cuda" if num_gpus else "cpu")
            load = actor.load.remote()
        else:
            actor = VIDEO_ACTOR.options(**resources).remote(self.config, self.spec, self.limits)
            load = actor.load.remote(encodes=role == "worker")
        self._calls[load], self._pinged_at[actor] = (actor, "loaded"), 0.0
        return actor

    def stop(self, actor: ActorHandle) -> None:
        """Kill an actor; no more events of it follow."""
        self._calls = {answer: call for answer, call in self._calls.items() if call[0] != actor}
        del self._pinged_at[actor]
        ray.kill(actor)

    def assign(self, actor: ActorHandle, jobs: list[Job], encoder: ActorHandle | None) -> None:
        """Send a group of jobs; to a decoder, with the encoder for its frames."""
        self._calls[actor.results.options(**STREAM).remote(jobs, encoder)] = (actor, "result")

    def events(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits for something to happen, at most for the timeout."""
        now, pinged = self.clock(), {actor for actor, kind in self._calls.values() if kind == "alive"}
        for actor, pinged_at in self._pinged_at.items():
            if actor not in pinged and now - pinged_at >= PING_SECONDS:
                self._pinged_at[actor] = now
                self._calls[actor.ping.remote()] = (actor, "alive")
        if not self._calls:
            time.sleep(timeout)
            return []
        ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [event for answer in ready for event in self._events_of(answer)]

    def _events_of(self, answer: ray.ObjectRef | ray.ObjectRefGenerator) -> Iterator[Event]:
        actor, kind = self._calls[answer]
        try:
            yield Event(actor, kind, ray.get(next(answer) if kind == "result" else answer, timeout=GET_SECONDS))
            if kind == "result":
                return  # more may follow
        except StopIteration:
            yield Event(actor, "finished")
        except (RayTaskError, GetTimeoutError) as error:
            yield Event(actor, "raised", last_line(error))
        except RayError as error:
            # The results that a dead actor sent before it died come first: their stream ends with this error.
            if kind == "result" or (actor, "result") not in self._calls.values():
                yield Event(actor, "died", last_line(error))
        del self._calls[answer]

    def free(self) -> str:
        """Unused CPUs and GPUs, for messages."""
        available = ray.available_resources()
        return ", ".join(f"{available.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
