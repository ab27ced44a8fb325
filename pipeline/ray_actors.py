"""The actors of a pool on Ray, each on the node that the supervisor chose."""

import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.decode_child import Job
from pipeline.decoding import Limits
from pipeline.workers import EncoderLost, EncodeWorker, Result, VideoWorker, last_line
from unloc.errors import UnlocError
from unloc.inference.encode import EncodeConfig
from unloc.video.reading import ReadSpec

PING_SECONDS = 2.0
GET_SECONDS = 60.0  # for a ready object to reach this process
CONNECT_SECONDS = 10.0
RESULTS_AHEAD = 8  # of one actor that may wait in the object store
CALLS_AT_ONCE = 256  # of decoders to one encoder, which puts their frames into batches; more wait in Ray
VIDEO_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1})(VideoWorker)  # answers while it works
ENCODE_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1, "frames": CALLS_AT_ONCE})(EncodeWorker)
STREAM = {"num_returns": "streaming", "_generator_backpressure_num_objects": RESULTS_AHEAD}


class Role(StrEnum):
    """What an actor does; a worker decodes and encodes."""

    WORKER = "worker"
    DECODER = "decoder"
    ENCODER = "encoder"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts it."""

    node_id: str
    name: str
    cpus: int
    gpus: int


class Event(NamedTuple):
    """What an actor reports.

    | kind     | meaning                                  | value                    |
    |----------|------------------------------------------|--------------------------|
    | loaded   | it can work                              | its device               |
    | alive    | it answers                               | seconds without progress |
    | result   |                                          | Result or EncoderLost    |
    | finished | all results of its group have come       | None                     |
    | died     | its process has ended or is out of reach | message                  |
    | raised   | its own code failed                      | message                  |
    """

    actor: int
    kind: str
    value: str | float | Result | EncoderLost | None = None


class RayActors:
    """Processes on the connected Ray cluster, and the time; tests of the supervisor simulate both."""

    def __init__(self, config: EncodeConfig, spec: ReadSpec, limits: Limits) -> None:
        self.config, self.spec, self.limits = config, spec, limits
        self._numbers = itertools.count()
        self._handles: dict[int, ray.actor.ActorHandle] = {}
        self._calls: dict[ray.ObjectRef | ray.ObjectRefGenerator, tuple[int, str]] = {}
        """Running calls: the actor, and the kind of event that the answer is (loaded, alive or result)."""
        self._pinged_at: dict[int, float] = {}
        context = ray.get_runtime_context()
        self._address, self._own_node = context.gcs_address, context.get_node_id()

    def clock(self) -> float:
        """Seconds."""
        return time.monotonic()

    def nodes(self) -> list[Node]:
        """Machines that are alive. Raises UnlocError where the cluster is gone: Ray itself would end this process."""
        try:
            require_answer(self._address)
            nodes = live_nodes()
        except (OSError, RayError) as error:
            what = f"the Ray cluster at {self._address} is gone ({last_line(error)})"
            raise UnlocError(f"{what}; run the same command again") from None
        if all(node.node_id != self._own_node for node in nodes):
            raise UnlocError("Ray's process on this machine (raylet) has ended; run the same command again")
        return nodes

    def start(self, role: Role, node: Node, *, num_cpus: int, num_gpus: int) -> int:
        """Start an actor on a node; its number."""
        affinity = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": affinity}
        if role is Role.ENCODER:
            handle = ENCODE_ACTOR.options(**resources).remote(self.config, "cuda" if num_gpus else "cpu")
            load = handle.load.remote()
        else:
            handle = VIDEO_ACTOR.options(**resources).remote(self.config, self.spec, self.limits)
            load = handle.load.remote(encodes=role is Role.WORKER)
        number = next(self._numbers)
        self._handles[number], self._pinged_at[number] = handle, 0.0
        self._calls[load] = (number, "loaded")
        return number

    def stop(self, actor: int) -> None:
        """Kill an actor; no more events of it follow."""
        self._calls = {answer: call for answer, call in self._calls.items() if call[0] != actor}
        del self._pinged_at[actor]
        ray.kill(self._handles.pop(actor))

    def assign(self, actor: int, jobs: list[Job], encoder: int | None) -> None:
        """Send a group of jobs; to a decoder, with the encoder for its frames."""
        results = self._handles[actor].results.options(**STREAM)
        self._calls[results.remote(jobs, None if encoder is None else self._handles[encoder])] = (actor, "result")

    def events(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits for something to happen, at most for the timeout."""
        now, pinged = self.clock(), {actor for actor, kind in self._calls.values() if kind == "alive"}
        for actor, handle in self._handles.items():
            if actor not in pinged and now - self._pinged_at[actor] >= PING_SECONDS:
                self._pinged_at[actor] = now
                self._calls[handle.ping.remote()] = (actor, "alive")
        if not self._calls:
            time.sleep(timeout)
            return []
        ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [event for answer in ready for event in self._events_of(answer)]

    def _events_of(self, answer: ray.ObjectRef | ray.ObjectRefGenerator) -> Iterator[Event]:
        actor, kind = self._calls[answer]
        is_over = kind != "result"
        try:
            yield Event(actor, kind, ray.get(answer if is_over else next(answer), timeout=GET_SECONDS))
        except StopIteration:
            is_over = True
            yield Event(actor, "finished")
        except (RayTaskError, GetTimeoutError) as error:
            is_over = True
            yield Event(actor, "raised", last_line(error))
        except RayError as error:
            is_over = True
            # The results that a dead actor sent before it died come first: their stream ends with this error.
            if kind == "result" or (actor, "result") not in self._calls.values():
                yield Event(actor, "died", last_line(error))
        if is_over:
            del self._calls[answer]

    def free(self) -> str:
        """Unused CPUs and GPUs, for messages."""
        available = ray.available_resources()
        return ", ".join(f"{available.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def live_nodes() -> list[Node]:
    """Machines of the connected cluster."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            name, resources = f"{node['NodeManagerHostname']} (node {node['NodeID'][:6]})", node["Resources"]
            nodes.append(Node(node["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("GPU", 0))))
    return nodes


def require_answer(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray itself would wait for a minute and end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
