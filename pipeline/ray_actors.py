"""The actors of a pool as Ray runs them: each on the machine that the supervisor chose for it."""

import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.decode_child import Job
from pipeline.decoding import Limits
from pipeline.supervisor import Died, Event, Finished, Gave, Heard, Node, Raised, Ready, Role
from pipeline.workers import EncodeWorker, VideoWorker, last_line
from unloc.errors import UnlocError
from unloc.inference.encode import EncodeConfig
from unloc.video.reading import ReadSpec

PING_SECONDS = 2.0
GET_SECONDS = 60.0  # for what is ready to reach this process
CONNECT_SECONDS = 10.0
RESULTS_AHEAD = 8  # of an actor's results that may wait in the object store
CALLS_AT_ONCE = 256  # of decoders to one encoder, which puts their frames into batches; more wait in Ray
VIDEO_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1})(VideoWorker)  # answers while it works
ENCODE_ACTOR = ray.remote(max_restarts=0, concurrency_groups={"control": 1, "frames": CALLS_AT_ONCE})(EncodeWorker)
STREAM = {"num_returns": "streaming", "_generator_backpressure_num_objects": RESULTS_AHEAD}


@dataclass(eq=False)
class _Call:
    """What an actor has yet to answer."""

    actor: int
    name: str
    """load, ping or results."""


class RayActors:
    """`supervisor.Actors` on the connected Ray cluster."""

    def __init__(self, config: EncodeConfig, spec: ReadSpec, limits: Limits) -> None:
        self.config, self.spec, self.limits = config, spec, limits
        self._numbers = itertools.count()
        self._handles: dict[int, ray.actor.ActorHandle] = {}
        self._calls: dict[ray.ObjectRef | ray.ObjectRefGenerator, _Call] = {}
        self._pinged_at: dict[int, float] = {}
        context = ray.get_runtime_context()
        self._address, self._own_node = context.gcs_address, context.get_node_id()

    def clock(self) -> float:
        """Seconds."""
        return time.monotonic()

    def nodes(self) -> list[Node]:
        """Machines that live. Raises UnlocError where the cluster is gone: Ray itself would end this process."""
        try:
            require_answer(self._address)
            nodes = live_nodes()
        except (OSError, RayError) as error:
            raise UnlocError(f"Ray at {self._address} is gone ({last_line(error)}); run the same again") from None
        if all(node.node_id != self._own_node for node in nodes):
            raise UnlocError("Ray's process on this machine (raylet) has ended; run the same again")
        return nodes

    def start(self, role: Role, node: Node, *, num_cpus: int, num_gpus: int) -> int:
        """Start an actor on a machine; its number."""
        placed = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        }
        if role is Role.ENCODER:
            handle = ENCODE_ACTOR.options(**placed).remote(self.config, "cuda" if num_gpus else "cpu")
            load = handle.load.remote()
        else:
            handle = VIDEO_ACTOR.options(**placed).remote(self.config, self.spec, self.limits)
            load = handle.load.remote(encodes=role is Role.WORKER)
        number = next(self._numbers)
        self._handles[number], self._pinged_at[number] = handle, 0.0
        self._calls[load] = _Call(number, "load")
        return number

    def stop(self, actor: int) -> None:
        """End an actor, whatever it is at."""
        self._calls = {waitable: call for waitable, call in self._calls.items() if call.actor != actor}
        del self._pinged_at[actor]
        ray.kill(self._handles.pop(actor))

    def give(self, actor: int, jobs: list[Job], encoder: int | None) -> None:
        """Hand over a group of jobs, to a decoder with the encoder that takes its frames."""
        results = self._handles[actor].results.options(**STREAM)
        self._calls[results.remote(jobs, None if encoder is None else self._handles[encoder])] = _Call(actor, "results")

    def events(self, timeout: float) -> list[Event]:
        """What has happened; waits for something to happen, but not longer than the timeout."""
        self._ping()
        if not self._calls:
            time.sleep(timeout)
            return []
        ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [event for waitable in ready for event in self._event(waitable)]

    def free(self) -> str:
        """What the cluster could give now, in words."""
        available = ray.available_resources()
        return ", ".join(f"{available.get(name, 0):g} {name}" for name in ("CPU", "GPU"))

    def _ping(self) -> None:
        now, asked = self.clock(), {call.actor for call in self._calls.values() if call.name == "ping"}
        for number, handle in self._handles.items():
            if number not in asked and now - self._pinged_at[number] >= PING_SECONDS:
                self._pinged_at[number] = now
                self._calls[handle.ping.remote()] = _Call(number, "ping")

    def _event(self, waitable: ray.ObjectRef | ray.ObjectRefGenerator) -> Iterator[Event]:
        call = self._calls[waitable]
        is_over = call.name != "results"
        try:
            value = ray.get(waitable if is_over else next(waitable), timeout=GET_SECONDS)
        except StopIteration:
            is_over = True
            yield Finished(call.actor)
        except (RayTaskError, GetTimeoutError) as error:
            is_over = True
            yield Raised(call.actor, last_line(error))
        except RayError as error:
            is_over = True
            # What a dead actor has given before comes first: its results tell of its end.
            if call.name == "results" or not self._gives_results(call.actor):
                yield Died(call.actor, last_line(error))
        else:
            yield {"load": Ready, "ping": Heard, "results": Gave}[call.name](call.actor, value)
        if is_over:
            del self._calls[waitable]

    def _gives_results(self, actor: int) -> bool:
        return any(call.actor == actor and call.name == "results" for call in self._calls.values())


def live_nodes() -> list[Node]:
    """Machines of the connected cluster."""
    return [_node_of(node) for node in ray.nodes() if node["Alive"]]


def _node_of(node: dict) -> Node:
    name, resources = f"{node['NodeManagerHostname']} (node {node['NodeID'][:6]})", node["Resources"]
    return Node(node["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def require_answer(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray itself would wait a minute and then end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
