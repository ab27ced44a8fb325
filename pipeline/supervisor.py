"""Assigns videos to actors and replaces actors that die, hang or fail. It does not call Ray: `RayActors` does.

Fused: every worker decodes and encodes. Split: decoders send their frames to encoders, which have the GPUs. A worker
that has loaded its tower gets one group of videos at a time; a decoder gets one when an encoder has loaded.
"""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ray.actor import ActorHandle

from pipeline.cluster import Event, Node, RayActors, Role
from pipeline.decoding import MACHINE, Job
from pipeline.workers import MAX_NODE_FAILURES, Result, completed_failure, video_failure
from unloc.cache.shards import Failure
from unloc.cache.writing import VideoTokens
from unloc.errors import UnlocError

logger = logging.getLogger(__name__)
MAX_GROUP = 8  # videos given to a worker at once: short ones share batches
MAX_DEATHS = 5  # workers that may die with a video before it is quarantined; deaths of its decoder count apart
MAX_ATTEMPTS = 5  # of one video in a run that end in a failure of a machine
BACKOFF_SECONDS = 1.0  # in which a node gets nothing after a failure; doubled at each further one
POLL_SECONDS = 1.0
START_SECONDS = 120.0  # for an actor to answer; it answers while it loads its tower
MIN_TIMEOUT_SECONDS = 5.0
REPORT_SECONDS = 60.0  # between warnings that nothing runs


def pool_size(nodes: list[Node], workers: int, encoders: int | None, num_jobs: int) -> tuple[int, int]:
    """(workers or decoders, encoders) for which the cluster has room; -1 workers: one a core; None encoders: one a GPU.
    An encoder takes a core, and a GPU where there are some; there are never more encoders than decoders.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    num_workers = min(num_jobs, cpus if workers == -1 else workers)
    num_encoders = gpus if encoders is None else min(encoders, gpus or encoders)
    num_encoders = min(num_encoders, max(1, cpus // 2), num_workers)
    return max(1, min(num_workers, cpus - num_encoders)), num_encoders


@dataclass(eq=False)
class _Task:
    job: Job
    deaths: int = 0  # of workers that had it
    attempts: int = 0  # that ended in a failure of a machine
    failed_on: set[str] = field(default_factory=set)  # ids of nodes


@dataclass(eq=False)
class _Actor:
    handle: ActorHandle
    role: Role
    node: Node
    heard_at: float
    has_answered: bool = False
    is_loaded: bool = False
    is_busy: bool = False  # until its group is finished
    tasks: dict[str, _Task] = field(default_factory=dict)  # of its group, without a result yet
    encoder: ActorHandle | None = None  # of its group

    def take_tasks(self) -> list[_Task]:
        tasks, self.tasks = list(self.tasks.values()), {}
        return tasks


@dataclass
class _NodeHealth:
    failures: int = 0  # since its last finished video
    backoff_until: float = 0.0
    last_error: str = ""


class Supervisor:
    """A pool of actors that processes jobs: `results`."""

    def __init__(self, actors: RayActors, workers: int, encoders: int | None, timeout_seconds: float) -> None:
        self.actors, self.workers, self.encoders = actors, workers, encoders
        self.timeout_seconds = max(timeout_seconds, MIN_TIMEOUT_SECONDS)
        self.seconds_to_first_worker = 0.0  # from the call of `results` until the first job was assigned
        self._nodes, self._nodes_at = actors.nodes(), 0.0
        self._num_gpus = sum(node.gpus for node in self._nodes)
        self._is_split = bool(self._num_gpus if encoders is None else encoders)
        self._device: str | None = None
        self._pool: dict[ActorHandle, _Actor] = {}
        self._queue: deque[_Task] = deque()
        self._done: deque[Result] = deque()
        self._health: dict[str, _NodeHealth] = defaultdict(_NodeHealth)  # by id of the node
        self._now, self._clock, self._busy_at = 0.0, 0.0, 0.0

    def results(self, jobs: list[Job]) -> Iterator[Result]:
        """Results in the order in which they are ready. Raises UnlocError where no working node is left."""
        self._queue = deque(map(_Task, jobs))
        self._clock = self.actors.clock()
        num_workers, num_encoders = pool_size(self._nodes, self.workers, self.encoders, max(1, len(jobs)))
        has = f"the cluster has {sum(node.cpus for node in self._nodes)} CPUs and {self._num_gpus} GPUs"
        asked = [("workers", self.workers, num_workers), ("encoders", self.encoders or 0, num_encoders)]
        for option, wanted, possible in asked:
            if min(wanted, len(jobs)) > possible:
                logger.warning("--%s %d: %d can run now: %s", option, wanted, possible, has)
        if self.encoders and not self._num_gpus:
            logger.warning("--encoders %d: %s: encoders compute on CPUs", self.encoders, has)
        try:
            while self._queue or any(actor.is_busy for actor in self._pool.values()):
                self._update_time()
                self._start_actors()
                self._assign_tasks()
                for event in self.actors.events(POLL_SECONDS):
                    if event.actor in self._pool:
                        self._handle(self._pool[event.actor], event)
                self._replace_silent()
                while self._done:
                    yield self._done.popleft()
        finally:
            for actor in self._pool.values():
                self.actors.stop(actor.handle)

    def _update_time(self) -> None:
        """The time that the caller takes to write results does not count as silence of the actors."""
        clock = self.actors.clock()
        self._now += min(clock - self._clock, 2 * POLL_SECONDS)
        self._clock = clock
        if self._now - self._nodes_at >= POLL_SECONDS:
            self._nodes, self._nodes_at = self.actors.nodes(), self._now
        if any(actor.is_busy for actor in self._pool.values()):
            self._busy_at = self._now
        elif self._now - self._busy_at >= min(REPORT_SECONDS, self.timeout_seconds):
            self._busy_at = self._now
            starting = Counter(actor.role for actor in self._pool.values() if not actor.is_loaded)
            waiting = " and ".join(f"{count} {role}(s)" for role, count in starting.items())
            needs = "each needs 1 CPU" + ", an encoder 1 GPU" * bool(self._num_gpus)
            what = f"{waiting} cannot start ({needs})" if waiting else "machines are waiting after failures"
            logger.warning("nothing is running: %s; free: %s", what, self.actors.free())

    def _start_actors(self) -> None:
        """Keep the pool at its size on the nodes that are there; encoders first, as they fit on fewer nodes."""
        present = {node.node_id for node in self._nodes}
        for actor in [actor for actor in self._pool.values() if actor.node.node_id not in present]:
            self._queue.extendleft(reversed(self._remove(actor)))
        usable = [node for node in self._nodes if self._health[node.node_id].failures < MAX_NODE_FAILURES]
        has_lost_gpus = any(node.gpus for node in self._nodes) and not any(node.gpus for node in usable)
        if not usable or (self._num_gpus and has_lost_gpus):
            errors = "; ".join(one.last_error for one in self._health.values() if one.last_error)
            what = "no working machine is left" if self._nodes else "no machine is left in the cluster"
            advice = "finished videos are kept: fix this and run the same command again"
            raise UnlocError(f"{what} ({errors or 'all have left'}); {advice}")
        num_tasks = len(self._queue) + sum(len(actor.tasks) for actor in self._pool.values())
        num_workers, num_encoders = pool_size(usable, self.workers, self.encoders, num_tasks)
        nodes = [node for node in usable if self._health[node.node_id].backoff_until <= self._now]
        if self._is_split:
            self._start("encoder", max(1, num_encoders), nodes)
        self._start("decoder" if self._is_split else "worker", num_workers, nodes)

    def _start(self, role: Role, wanted: int, nodes: list[Node]) -> None:
        on_gpu = bool(self._num_gpus) and role == "encoder"
        for _ in range(wanted - sum(actor.role is role for actor in self._pool.values())):
            actors = Counter(actor.node.node_id for actor in self._pool.values())
            encoders = Counter(actor.node.node_id for actor in self._pool.values() if actor.role == "encoder")
            free = [one.gpus - encoders[one.node_id] if on_gpu else one.cpus - actors[one.node_id] for one in nodes]
            # The first decoder or worker shares a core where all are taken; there is always one.
            has_one = any(actor.role is role for actor in self._pool.values())
            if not nodes or (max(free) < 1 and (on_gpu or has_one)):
                return
            node = nodes[free.index(max(free))]
            num_cpus = int(node.cpus > actors[node.node_id])
            handle = self.actors.start(role, node, num_cpus=num_cpus, num_gpus=int(on_gpu))
            self._pool[handle] = _Actor(handle, role, node, heard_at=self._now)

    def _assign_tasks(self) -> None:
        workers = [actor for actor in self._pool.values() if actor.is_loaded and actor.role != "encoder"]
        encoders = [actor for actor in self._pool.values() if actor.is_loaded and actor.role == "encoder"]
        if self._is_split and not encoders:
            return
        for actor in workers:
            if actor.is_busy or self._health[actor.node.node_id].backoff_until > self._now:
                continue
            group = self._next_group(actor.node, workers)
            if not group:
                continue
            self.seconds_to_first_worker = self.seconds_to_first_worker or self._now
            if encoders:  # the one with the fewest decoders, on the same node if there is a choice
                load = Counter(other.encoder for other in workers if other.is_busy)
                chosen = min(encoders, key=lambda one: (load[one.handle], one.node.node_id != actor.node.node_id))
                actor.encoder = chosen.handle
            actor.tasks = {task.job.video_id: task for task in group}
            actor.is_busy = True
            self.actors.assign(actor.handle, [task.job for task in group], actor.encoder)

    def _next_group(self, node: Node, workers: list[_Actor]) -> list[_Task]:
        """A video with which a worker died is tried alone; one that failed on this node is left to other nodes."""
        node_ids = {actor.node.node_id for actor in workers}
        size = min(MAX_GROUP, max(1, len(self._queue) // (2 * len(workers))))
        group: list[_Task] = []
        for task in self._queue:
            if node.node_id in task.failed_on and not node_ids <= task.failed_on:
                continue
            if task.deaths and group:
                break
            group.append(task)
            if task.deaths or len(group) == size:
                break
        for task in group:
            self._queue.remove(task)
        return group

    def _handle(self, actor: _Actor, event: Event) -> None:
        value = event.value
        match event.kind:
            case "loaded":
                actor.is_loaded, actor.has_answered, actor.heard_at = True, True, self._now
                if actor.role == "encoder":
                    if self._device is None and self._num_gpus and value == "cpu":
                        name = actor.node.name
                        logger.warning("%s has a GPU, but PyTorch sees none: encoders compute on the CPU", name)
                    self._device = self._device or value
                    if value != self._device:  # tokens of another kind of device may differ in their last bits
                        message = f"PyTorch computes on {value} there, other encoders on {self._device}"
                        self._fail_actor(actor, message)
            case "alive":
                actor.has_answered, actor.heard_at = True, self._now
                # Decoders apply the timeout to their own child process, so they get longer.
                if value > self.timeout_seconds * (1.0 if actor.role == "encoder" else 1.5):
                    self._fail_actor(actor, f"no progress for {value:.0f} s")
            case "result" if isinstance(value, str):  # its encoder is lost
                self._retry(actor.take_tasks(), value)
                if actor.encoder in self._pool:
                    self._fail_actor(self._pool[actor.encoder], value)
            case "result" if isinstance(value, VideoTokens):
                del actor.tasks[value.video_id]
                for one in {actor.handle, actor.encoder} & self._pool.keys():
                    self._health[self._pool[one].node.node_id].failures = 0
                self._done.append(value)
            case "result":
                task = actor.tasks.pop(value.video_id)
                if (failure := video_failure(task.job, value)) is not None:
                    self._done.append(failure)
                else:
                    self._fail_node(actor.node, value.message, [task])
            case "finished":
                actor.is_busy = False
                self._retry(actor.take_tasks(), "it ended without a result")
            case "raised":
                self._fail_actor(actor, value)
            case "died":
                self._handle_death(actor, value)

    def _handle_death(self, actor: _Actor, message: str) -> None:
        """Counts for a video that was alone with its worker; in a group, nobody knows which video was the cause."""
        tasks = self._remove(actor)
        if not actor.is_loaded or actor.role == "encoder":
            self._fail_node(actor.node, f"its {actor.role} died: {message}")
            return
        logger.warning("a %s on %s died (%s): %d videos requeued", actor.role, actor.node.name, message, len(tasks))
        for task in reversed(tasks):
            task.failed_on.add(actor.node.node_id)
            task.deaths += 1
            if task.deaths < MAX_DEATHS:
                self._queue.appendleft(task)
                continue
            message = f"{task.job.path}: {MAX_DEATHS} workers died with it (last: {message}): quarantined"
            failure = Failure(task.job.video_id, "worker_died", message, MAX_DEATHS)
            self._done.append(completed_failure(task.job, failure))

    def _fail_actor(self, actor: _Actor, message: str) -> None:
        """Remove an actor whose machine failed, and requeue its videos."""
        self._fail_node(actor.node, f"its {actor.role} failed: {message}", self._remove(actor))

    def _fail_node(self, node: Node, message: str, tasks: Iterable[_Task] = ()) -> None:
        """Requeue the tasks, for other nodes first; the node backs off, and after MAX_NODE_FAILURES gets no more."""
        for task in tasks:
            task.failed_on.add(node.node_id)
        self._retry(tasks, message)
        health = self._health[node.node_id]
        health.last_error = f"{node.name}: {message}"
        if health.backoff_until > self._now or health.failures >= MAX_NODE_FAILURES:
            return  # failures in one backoff have the same cause
        health.failures += 1
        health.backoff_until = self._now + BACKOFF_SECONDS * 2 ** (health.failures - 1)
        if health.failures < MAX_NODE_FAILURES:
            logger.warning("%s: %s (failure %d of %d)", node.name, message, health.failures, MAX_NODE_FAILURES)
            return
        logger.warning("%s gets no more videos after %d failures: %s", node.name, MAX_NODE_FAILURES, message)
        for actor in [actor for actor in self._pool.values() if actor.node.node_id == node.node_id]:
            self._queue.extendleft(reversed(self._remove(actor)))

    def _remove(self, actor: _Actor) -> list[_Task]:
        """Stop an actor; the tasks that it leaves."""
        del self._pool[actor.handle]
        self.actors.stop(actor.handle)
        return actor.take_tasks()

    def _retry(self, tasks: Iterable[_Task], message: str) -> None:
        """Append to the queue; after MAX_ATTEMPTS a task is left to the next run."""
        for task in tasks:
            task.attempts += 1
            if task.attempts < MAX_ATTEMPTS:
                self._queue.append(task)
                continue
            advice = f"machines failed {MAX_ATTEMPTS} times, the file is readable: the next run tries again"
            self._done.append(Failure(task.job.video_id, MACHINE, f"{message}; {advice}", MAX_ATTEMPTS))

    def _replace_silent(self) -> None:
        for actor in list(self._pool.values()):
            silence = self._now - actor.heard_at
            limit = self.timeout_seconds if actor.is_loaded else max(START_SECONDS, self.timeout_seconds)
            if actor.handle not in self._pool or silence <= limit:
                continue
            if actor.has_answered:
                self._fail_actor(actor, f"silent for {silence:.0f} s" + " while it loaded" * (not actor.is_loaded))
            else:
                self._remove(actor)  # it may only wait for free resources
