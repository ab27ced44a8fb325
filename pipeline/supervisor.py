"""Which actor does which job, and what is done when an actor or a machine fails; the actors are behind `Actors`.

Two layouts, one supervisor. Fused: every worker decodes and encodes. Split: decoders send their frames to encoders,
which have the GPUs, and give the tokens that come back. An actor gets jobs only once it has answered, a decoder only
while an encoder has answered too. Back-pressure: an actor has one group of jobs at a time; its results are taken as
they come.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pipeline.decode_child import MACHINE, Job
from pipeline.ledger import Failure
from pipeline.workers import MAX_STRIKES, EncoderLost, Result, failure_of, own_failure
from unloc.errors import UnlocError

logger = logging.getLogger(__name__)
MAX_GROUP = 8  # videos handed to a worker at once: short ones share batches
MAX_DEATHS = 5  # workers that may die around a video before it is given up; its decoder dies apart from them
MAX_FAULTS = 5  # failures of machines that one video may meet in a run
REST_SECONDS = 1.0  # for a machine after a failure, then twice as long each time
TICK_SECONDS = 1.0
START_SECONDS = 120.0  # for a process to answer once; loading a tower may take longer, but it answers meanwhile
SHORTEST_SILENCE_SECONDS = 5.0
TELL_SECONDS = 60.0  # in which nothing runs, before it is told


class Role(StrEnum):
    """What an actor does."""

    WORKER = "worker"
    """Decodes and encodes."""
    DECODER = "decoder"
    ENCODER = "encoder"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts it."""

    node_id: str
    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Ready:
    """An actor has loaded what it needs, and computes on this device."""

    actor: int
    device: str


@dataclass(frozen=True)
class Heard:
    """An actor answers, and has been at one thing for so long."""

    actor: int
    seconds_at_it: float


@dataclass(frozen=True)
class Gave:
    """An actor gives a result."""

    actor: int
    result: Result | EncoderLost


@dataclass(frozen=True)
class Finished:
    """An actor is through with its group."""

    actor: int


@dataclass(frozen=True)
class Died:
    """An actor's process is gone or out of reach."""

    actor: int
    words: str


@dataclass(frozen=True)
class Raised:
    """An actor's own code failed: something is wrong with its machine."""

    actor: int
    words: str


Event = Ready | Heard | Gave | Finished | Died | Raised


class Actors(Protocol):
    """The processes of a cluster and the time; Ray's are `ray_actors.RayActors`."""

    def nodes(self) -> list[Node]:
        """Machines that live. Raises UnlocError where the cluster is gone."""

    def start(self, role: Role, node: Node, *, num_cpus: int, num_gpus: int) -> int:
        """Start an actor on a machine; its number."""

    def stop(self, actor: int) -> None:
        """End an actor, whatever it is at; no event of it comes any more."""

    def give(self, actor: int, jobs: list[Job], encoder: int | None) -> None:
        """Hand over a group of jobs, to a decoder with the encoder that takes its frames."""

    def events(self, timeout: float) -> list[Event]:
        """What has happened; waits for something to happen, but not longer than the timeout."""

    def clock(self) -> float:
        """Seconds."""

    def free(self) -> str:
        """What the cluster could give now, in words."""


@dataclass(frozen=True)
class Staff:
    """How many actors are wanted."""

    takers: int
    """Workers or decoders: those that take jobs."""
    encoders: int
    """0: workers encode too."""


def wanted_staff(nodes: list[Node], workers: int, encoders: int | None, num_jobs: int) -> Staff:
    """As many as were asked for (-1 workers: one a core; None encoders: one a GPU) and as the cluster has room for.

    An encoder takes a core, and a GPU where the cluster has some. There are never more encoders than decoders.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    takers = min(num_jobs, cpus if workers == -1 else workers)
    num_encoders = gpus if encoders is None else min(encoders, gpus or encoders)
    num_encoders = min(num_encoders, max(1, cpus // 2), takers)
    return Staff(max(1, min(takers, cpus - num_encoders)), num_encoders)


@dataclass(eq=False)
class _Task:
    job: Job
    deaths: int = 0
    faults: int = 0
    failed_on: set[str] = field(default_factory=set)
    """Machines that could not do it."""


@dataclass(eq=False)
class _Actor:
    number: int
    role: Role
    node: Node
    heard_at: float
    has_answered: bool = False
    is_ready: bool = False
    is_busy: bool = False
    """Has it a group? Until it says that it is through with it."""
    tasks: dict[str, _Task] = field(default_factory=dict)
    """What it has still to do."""
    is_single: bool = False
    """Was its group a single job?"""
    encoder: int | None = None
    """Who encodes its group."""


@dataclass
class _Record:
    """What a machine did lately."""

    name: str
    strikes: int = 0
    rests_until: float = 0.0
    words: str = ""


class Supervisor:
    """A pool of actors that does jobs: `results`."""

    def __init__(self, actors: Actors, workers: int, encoders: int | None, timeout_seconds: float) -> None:
        self.actors, self.workers, self.encoders = actors, workers, encoders
        self.silence_seconds = max(timeout_seconds, SHORTEST_SILENCE_SECONDS)
        self.seconds_to_first_worker = 0.0
        """From the call of `results` until a job could be handed out."""
        self._nodes, self._looked_at = actors.nodes(), 0.0
        self._gpus = sum(node.gpus for node in self._nodes)
        self._is_split = bool(self._gpus if encoders is None else encoders)
        self._device: str | None = None
        self._all: dict[int, _Actor] = {}
        self._waiting: deque[_Task] = deque()
        self._done: deque[Result] = deque()
        self._records: dict[str, _Record] = {}
        self._now, self._clock, self._quiet_since = 0.0, 0.0, 0.0

    def results(self, jobs: list[Job]) -> Iterator[Result]:
        """Results in the order in which they are ready. Raises UnlocError where no machine is left that works."""
        self._waiting = deque(map(_Task, jobs))
        self._clock = self.actors.clock()
        self._tell_what_is_short(len(jobs))
        try:
            while self._waiting or self._busy():
                self._pass_time()
                self._keep_staff()
                self._hand_out()
                for event in self.actors.events(TICK_SECONDS):
                    if event.actor in self._all:
                        self._take(self._all[event.actor], event)
                self._replace_silent()
                while self._done:
                    yield self._done.popleft()
        finally:
            for actor in self._all.values():
                self.actors.stop(actor.number)

    def _pass_time(self) -> None:
        """Time in which nobody listened, as the results were being written, is no silence of the actors."""
        clock = self.actors.clock()
        self._now += min(clock - self._clock, 2 * TICK_SECONDS)
        self._clock = clock
        if self._now - self._looked_at >= TICK_SECONDS:
            self._nodes, self._looked_at = self.actors.nodes(), self._now
        if self._busy():
            self._quiet_since = self._now
        elif self._now - self._quiet_since >= min(TELL_SECONDS, self.silence_seconds):
            self._quiet_since = self._now
            self._tell_what_is_missing()

    # Staff

    def _busy(self) -> list[_Actor]:
        return [actor for actor in self._all.values() if actor.is_busy]

    def _with_role(self, role: Role) -> list[_Actor]:
        return [actor for actor in self._all.values() if actor.role is role]

    def _record(self, node: Node) -> _Record:
        return self._records.setdefault(node.node_id, _Record(node.name))

    def _tell_what_is_short(self, num_jobs: int) -> None:
        staff = wanted_staff(self._nodes, self.workers, self.encoders, max(1, num_jobs))
        has = f"the cluster has {sum(node.cpus for node in self._nodes)} CPUs and {self._gpus} GPUs"
        if self.encoders and min(self.encoders, num_jobs) > staff.encoders:
            words = f"{has}, and every encoder needs a decoder"
            logger.warning("--encoders %d: %d can run now: %s", self.encoders, staff.encoders, words)
        if self.encoders and not self._gpus:
            logger.warning("--encoders %d: they compute on CPUs: the cluster has no GPU", self.encoders)
        if min(self.workers, num_jobs) > staff.takers:
            logger.warning("--workers %d: %d can run now: %s", self.workers, staff.takers, has)

    def _tell_what_is_missing(self) -> None:
        roles = (Role.ENCODER, Role.DECODER) if self._is_split else (Role.WORKER,)
        lacking = [role for role in roles if not any(actor.is_ready for actor in self._with_role(role))]
        needs = {role: "1 CPU" for role in Role} | ({Role.ENCODER: "1 GPU"} if self._gpus else {})
        words = " and ".join(f"no {role} has started (it needs {needs[role]})" for role in lacking)
        logger.warning("nothing runs: %s; free: %s", words or "machines rest after failures", self.actors.free())

    def _keep_staff(self) -> None:
        """Start what is missing on the machines there are: encoders first, for they have fewer places."""
        nodes, there = self._nodes, {node.node_id for node in self._nodes}
        for actor in [actor for actor in self._all.values() if actor.node.node_id not in there]:
            self._give_back(self._remove(actor))
        fit = [node for node in nodes if self._record(node).strikes < MAX_STRIKES]
        if not fit or (self._gpus and not any(node.gpus for node in fit) and any(node.gpus for node in nodes)):
            words = "; ".join(f"{record.name}: {record.words}" for record in self._records.values() if record.words)
            what = "no machine that works is left" if nodes else "no machine is left in the cluster"
            raise UnlocError(
                f"{what} ({words or 'all have gone'}); what is finished is kept: mend it, run the same again"
            )
        num_jobs = len(self._waiting) + sum(len(actor.tasks) for actor in self._busy())
        staff = wanted_staff(fit, self.workers, self.encoders, num_jobs)
        awake = [node for node in fit if self._record(node).rests_until <= self._now]
        if self._is_split:
            self._start(Role.ENCODER, max(1, staff.encoders), awake)
        self._start(Role.DECODER if self._is_split else Role.WORKER, staff.takers, awake)

    def _start(self, role: Role, wanted: int, nodes: list[Node]) -> None:
        """The core of an encoder that has yet to be started is kept for it."""
        on_gpu = bool(self._gpus) and role is Role.ENCODER
        for _ in range(wanted - len(self._with_role(role))):
            here = {
                node: [actor.role for actor in self._all.values() if actor.node.node_id == node.node_id]
                for node in nodes
            }
            free = {
                node: node.gpus - roles.count(role) if on_gpu else node.cpus - len(roles)
                for node, roles in here.items()
            }
            node = max(free, key=free.get, default=None)
            if node is None or (free[node] < 1 and (on_gpu or self._with_role(role))):
                return
            num_cpus = int(node.cpus > len(here[node]))
            number = self.actors.start(role, node, num_cpus=num_cpus, num_gpus=int(on_gpu))
            self._all[number] = _Actor(number, role, node, heard_at=self._now)

    def _remove(self, actor: _Actor) -> list[_Task]:
        """End an actor; the tasks that it had."""
        del self._all[actor.number]
        self.actors.stop(actor.number)
        return list(actor.tasks.values())

    def _give_back(self, tasks: list[_Task]) -> None:
        self._waiting.extendleft(reversed(tasks))

    # Jobs

    def _hand_out(self) -> None:
        encoders = [actor for actor in self._with_role(Role.ENCODER) if actor.is_ready]
        for actor in self._all.values():
            is_free = actor.is_ready and not actor.is_busy and actor.role is not Role.ENCODER
            if not is_free or self._record(actor.node).rests_until > self._now or (self._is_split and not encoders):
                continue
            group = self._next_group(actor.node)
            if not group:
                continue
            self.seconds_to_first_worker = self.seconds_to_first_worker or self._now
            actor.tasks = {task.job.video_id: task for task in group}
            actor.is_busy, actor.is_single = True, len(group) == 1
            if encoders:
                load = Counter(other.encoder for other in self._busy() if other is not actor)
                chosen = min(encoders, key=lambda one: (load[one.number], one.node.node_id != actor.node.node_id))
                actor.encoder = chosen.number
            self.actors.give(actor.number, [task.job for task in group], actor.encoder)

    def _next_group(self, node: Node) -> list[_Task]:
        """A video around which a worker died is tried alone; one that another machine could do is left to that."""
        takers = [actor for actor in self._all.values() if actor.is_ready and actor.role is not Role.ENCODER]
        fit = {actor.node.node_id for actor in takers}
        size = min(MAX_GROUP, max(1, len(self._waiting) // (2 * len(takers))))
        group: list[_Task] = []
        for task in self._waiting:
            if node.node_id in task.failed_on and not fit <= task.failed_on:
                continue
            if task.deaths and group:
                break
            group.append(task)
            if task.deaths or len(group) == size:
                break
        for task in group:
            self._waiting.remove(task)
        return group

    # Events

    def _take(self, actor: _Actor, event: Event) -> None:
        match event:
            case Ready():
                self._note_ready(actor, event.device)
            case Heard():
                actor.heard_at, actor.has_answered = self._now, True
                if event.seconds_at_it > self._patience(actor):
                    self._fault(actor, f"no progress for {event.seconds_at_it:.0f} s")
            case Gave(result=EncoderLost(words)):
                encoder = self._all.get(actor.encoder)
                tasks, actor.tasks = list(actor.tasks.values()), {}
                self._after_fault(tasks, words)
                if encoder is not None:
                    self._fault(encoder, words)
            case Gave():
                self._settle(actor, event.result)
            case Finished():
                actor.is_busy = False
                tasks, actor.tasks = list(actor.tasks.values()), {}
                self._after_fault(tasks, "ended without a result")
            case Raised():
                self._fault(actor, event.words)
            case Died():
                self._after_death(actor, event.words)

    def _note_ready(self, actor: _Actor, device: str) -> None:
        actor.is_ready, actor.has_answered, actor.heard_at = True, True, self._now
        if actor.role is not Role.ENCODER:
            return
        if self._device is None and self._gpus and device == "cpu":
            logger.warning("%s has a GPU for Ray, but PyTorch sees none: encoders compute on the CPU", actor.node.name)
        self._device = self._device or device
        if device != self._device:
            self._fault(actor, f"PyTorch sees {device} there, the other encoders compute on {self._device}")

    def _settle(self, actor: _Actor, result: Result) -> None:
        if not isinstance(result, Failure):
            for one in (actor, self._all.get(actor.encoder)):
                if one is not None:
                    self._record(one.node).strikes = 0
            del actor.tasks[result.meta["video_id"]]
            self._done.append(result)
            return
        task = actor.tasks.pop(result.video_id)
        failure = own_failure(task.job, result)
        if failure is not None:
            self._done.append(failure)
            return
        task.failed_on.add(actor.node.node_id)
        self._after_fault([task], result.message)
        self._strike(actor.node, result.message)

    def _after_death(self, actor: _Actor, words: str) -> None:
        """Held against a video that was alone with its worker; of a group nobody knows which one it was."""
        tasks = self._remove(actor)
        if not actor.is_ready or actor.role is Role.ENCODER:
            self._strike(actor.node, f"its {actor.role} died: {words}")
            return
        logger.warning(
            "a %s on %s died (%s); its %d videos go to another", actor.role, actor.node.name, words, len(tasks)
        )
        for task in reversed(tasks):
            task.failed_on.add(actor.node.node_id)
            task.deaths = task.deaths + 1 if actor.is_single else 1
            if task.deaths < MAX_DEATHS:
                self._waiting.appendleft(task)
                continue
            message = f"{task.job.path}: {MAX_DEATHS} workers died around it (last: {words}): quarantined"
            self._done.append(failure_of(task.job, "worker_died", message, MAX_DEATHS))

    def _fault(self, actor: _Actor, words: str) -> None:
        """The fault of an actor's machine: another actor takes its place, others do what it had."""
        tasks = self._remove(actor)
        for task in tasks:
            task.failed_on.add(actor.node.node_id)
        self._after_fault(tasks, words)
        self._strike(actor.node, f"its {actor.role} failed: {words}")

    def _after_fault(self, tasks: list[_Task], words: str) -> None:
        """To the end of the queue; one that no machine can do is left to another run."""
        for task in tasks:
            task.faults += 1
            if task.faults < MAX_FAULTS:
                self._waiting.append(task)
                continue
            message = f"{words}; the machines failed {MAX_FAULTS} times, the file can be read: the next run tries again"
            self._done.append(Failure(task.job.video_id, MACHINE, message, MAX_FAULTS))

    def _strike(self, node: Node, words: str) -> None:
        """A machine rests after a failure, and gets no more after the last. Failures while it rests belong to one."""
        record = self._record(node)
        record.words = words
        if record.rests_until > self._now or record.strikes >= MAX_STRIKES:
            return
        record.strikes += 1
        record.rests_until = self._now + REST_SECONDS * 2 ** (record.strikes - 1)
        if record.strikes < MAX_STRIKES:
            logger.warning("%s: %s (%d of %d)", node.name, words, record.strikes, MAX_STRIKES)
            return
        logger.warning("%s gets no more videos: %s (%d failures, no video done)", node.name, words, MAX_STRIKES)
        for actor in [actor for actor in self._all.values() if actor.node.node_id == node.node_id]:
            self._give_back(self._remove(actor))

    def _patience(self, actor: _Actor) -> float:
        """Of a decoder more is borne: it watches its own process for the same time."""
        return self.silence_seconds * (1.0 if actor.role is Role.ENCODER else 1.5)

    def _replace_silent(self) -> None:
        for actor in list(self._all.values()):
            quiet = self._now - actor.heard_at
            if actor.number not in self._all:
                continue
            if actor.is_ready and quiet > self.silence_seconds:
                self._fault(actor, f"silent for {quiet:.0f} s")
            elif not actor.is_ready and quiet > max(START_SECONDS, self.silence_seconds):
                if actor.has_answered:
                    self._fault(actor, f"silent for {quiet:.0f} s while it started")
                else:  # it may only wait for room
                    self._remove(actor)
