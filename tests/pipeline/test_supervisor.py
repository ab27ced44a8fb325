"""The supervisor over simulated actors in simulated time: every layout, size and fault without a process."""

import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import get_args

import pytest

from pipeline.cluster import Event, Node, Role
from pipeline.decoding import MACHINE, Job
from pipeline.supervisor import Supervisor, pool_size
from unloc.cache.shards import Failure
from unloc.cache.writing import VideoTokens
from unloc.errors import UnlocError

TIMEOUT = 20.0
LAPTOP = [Node("a", "laptop", 4, 0)]
GPU_MACHINE = [Node("a", "gpus", 4, 2)]


@dataclass
class SimulatedActor:
    """It does one job a second."""

    role: Role
    node: Node
    num_cpus: int
    starts_in: int = 1
    jobs: deque = field(default_factory=deque)
    has_group: bool = False
    encoder: int | None = None
    is_stopped: bool = False


class World:
    """`RayActors` without Ray, in which every call of `events` is a second; a test changes what happens."""

    def __init__(self, nodes: list[Node]) -> None:
        self.all_nodes, self.seconds, self.actors = list(nodes), 0.0, {}
        self.started, self.most = Counter(), Counter()
        self.does_not_start: set[str] = set()
        self.bad_nodes: set[str] = set()
        self.on_second = lambda world: None
        self.gives = lambda actor, job: VideoTokens({"video_id": job.video_id}, None)
        self.killed: list[int] = []

    def nodes(self) -> list[Node]:
        return list(self.all_nodes)

    def clock(self) -> float:
        return self.seconds

    def free(self) -> str:
        return "0 CPU, 0 GPU"

    def start(self, role: Role, node: Node, *, num_cpus: int, num_gpus: int) -> int:
        number = sum(self.started.values())
        self.actors[number] = SimulatedActor(role, node, num_cpus)
        self.started[role] += 1
        on_node = [actor for actor in self.actors.values() if actor.node == node]
        assert sum(actor.num_cpus for actor in on_node) <= node.cpus, "Ray would have no room for it"
        assert sum(actor.role == "encoder" for actor in on_node) <= node.gpus or not num_gpus
        for each in get_args(Role):
            self.most[each] = max(self.most[each], sum(actor.role is each for actor in self.actors.values()))
        return number

    def stop(self, actor: int) -> None:
        del self.actors[actor]

    def assign(self, actor: int, jobs: list[Job], encoder: int | None) -> None:
        worker = self.actors[actor]
        assert worker.starts_in <= 0 and not worker.has_group, "assigned to one that has not loaded, or is busy"
        if worker.role == "decoder":
            assert self.actors[encoder].starts_in <= 0
        worker.jobs, worker.has_group, worker.encoder = deque(jobs), True, encoder

    def kill(self, number: int) -> None:
        self.killed.append(number)

    def events(self, timeout: float) -> list:
        self.seconds += timeout
        assert self.seconds < 50_000, "hangs"
        self.on_second(self)
        found = []
        for number, actor in list(self.actors.items()):
            found += self._events_of(number, actor)
        return found

    def _events_of(self, number: int, actor: SimulatedActor) -> list:
        if actor.is_stopped or actor.node.node_id in self.does_not_start:
            return []
        if number in self.killed or actor.node not in self.all_nodes:
            return [Event(number, "died", "killed")]
        actor.starts_in -= 1
        if actor.starts_in == 0:
            return [Event(number, "alive", 0.0), Event(number, "loaded", "cpu")]
        if actor.has_group and actor.role == "decoder":
            encoder = self.actors.get(actor.encoder)
            if encoder is None or actor.encoder in self.killed:
                actor.has_group, actor.jobs = False, deque()
                return [Event(number, "result", "gone"), Event(number, "finished")]
            if encoder.is_stopped:
                return [Event(number, "alive", 0.0)]
        if not actor.has_group:
            return [Event(number, "alive", 0.0)]
        if not actor.jobs:
            actor.has_group = False
            return [Event(number, "finished")]
        job = actor.jobs.popleft()
        if actor.node.node_id in self.bad_nodes:
            return [Event(number, "result", Failure(job.video_id, MACHINE, "no such mount"))]
        result = self.gives(actor, job)
        return [Event(number, "result", result) if result is not None else Event(number, "died", "SIGSEGV")]


@pytest.fixture
def jobs_of(tmp_path):
    def make(count: int) -> list[Job]:
        (tmp_path / "video").write_bytes(b"a video")
        return [Job(f"v{n}", tmp_path / "video") for n in range(count)]

    return make


def run(world: World, jobs: list[Job], workers: int = -1, encoders: int | None = None) -> dict:
    """Results by id; each came once."""
    results = {}
    for result in Supervisor(world, workers, encoders, TIMEOUT).results(jobs):
        video_id = result.video_id if isinstance(result, Failure) else result.meta["video_id"]
        assert video_id not in results, "done twice"
        results[video_id] = result
    assert not world.actors, "all are ended"
    return results


def require_all_done(world: World, jobs: list[Job], workers: int = -1, encoders: int | None = None) -> None:
    results = run(world, jobs, workers, encoders)
    assert results.keys() == {job.video_id for job in jobs}
    assert not [result for result in results.values() if isinstance(result, Failure)]


@pytest.mark.parametrize("encoders", [None, 0, 1, 2, 8])
@pytest.mark.parametrize(("cpus", "gpus"), [(1, 0), (1, 1), (2, 8), (4, 0), (5, 2), (16, 8)])
def test_every_size_of_pool_on_every_size_of_machine_ends(jobs_of, cpus, gpus, encoders):
    is_split = bool(gpus if encoders is None else encoders)
    for workers, videos in itertools.product([-1, 1, 3, 64], [0, 1, 5, 200]):
        world = World([Node("a", "machine", cpus, gpus)])
        require_all_done(world, jobs_of(videos), workers, encoders)
        if videos:
            num_workers = world.most["decoder"] + world.most["worker"]
            assert 1 <= num_workers <= min(videos, cpus if workers == -1 else workers)
            assert (world.most["encoder"] > 0) == is_split and (world.most["worker"] == 0) == is_split
            assert world.most["encoder"] <= (gpus or 8)


@pytest.mark.parametrize(("workers", "encoders"), [(2, 1), (2, 2), (3, 2), (5, 2), (5, 3), (8, 3)])
def test_decoders_are_shared_out_exactly(jobs_of, workers, encoders):
    world, differences = World([Node("a", "machine", 16, encoders)]), []

    def count(world):
        load = Counter(actor.encoder for actor in world.actors.values() if actor.has_group)
        if load.total() == workers:
            differences.append(max(load.values()) - (min(load.values()) if len(load) == encoders else 0))

    world.on_second = count
    require_all_done(world, jobs_of(200), workers, encoders)
    assert differences and max(differences) <= 1


def test_a_node_that_joins_gets_actors_and_one_that_goes_loses_no_video(jobs_of):
    for nodes, more in ((LAPTOP, Node("b", "second", 4, 0)), (GPU_MACHINE, Node("b", "second", 4, 2))):
        world, jobs = World(nodes), jobs_of(200)

        def change(world, more=more):
            if world.seconds == 10:
                world.all_nodes.append(more)
            if world.seconds == 20:
                assert {actor.node for actor in world.actors.values()} == set(world.all_nodes)
                world.all_nodes.pop(0)

        world.on_second = change
        require_all_done(world, jobs)
        assert world.seconds > 20


def test_asking_for_more_encoders_than_gpus_is_a_warning_and_never_moves_one_to_the_cpu(jobs_of, caplog):
    world = World([Node("a", "machine", 16, 2)])
    require_all_done(world, jobs_of(50), 4, 8)
    assert world.most["encoder"] == 2 and "--encoders 8: 2 can run now" in caplog.text


@pytest.mark.parametrize(("nodes", "role"), [(LAPTOP, "worker"), (GPU_MACHINE, "decoder"), (GPU_MACHINE, "encoder")])
def test_a_stopped_actor_is_replaced_within_twice_the_timeout(jobs_of, nodes, role, caplog):
    world, stopped = World(nodes), []

    def stop(world):
        if world.seconds == 6:
            number = next(number for number, actor in world.actors.items() if actor.role is role)
            world.actors[number].is_stopped = True
            stopped.append(number)
        if world.seconds == 6 + 2 * TIMEOUT:
            assert stopped[0] not in world.actors

    world.on_second = stop
    require_all_done(world, jobs_of(200))
    assert stopped and "silent for" in caplog.text


def test_an_actor_that_answers_without_progress_is_replaced(jobs_of, caplog):
    world, stuck = World(LAPTOP), set()
    events_of = world._events_of

    def hang(number, actor):
        if number == 0 and actor.has_group:
            stuck.add(number)
        return [Event(0, "alive", 31.0)] if number in stuck else events_of(number, actor)

    world._events_of = hang
    require_all_done(world, jobs_of(30))
    assert "no progress for 31 s" in caplog.text


@pytest.mark.parametrize("second", [Node("b", "bad", 4, 0), Node("b", "bad", 64, 0)])
def test_a_machine_without_the_mount_is_named_and_gets_no_more_videos_and_no_video_is_lost(jobs_of, second, caplog):
    world = World([*LAPTOP, second])
    world.bad_nodes = {"b"}
    require_all_done(world, jobs_of(300))
    assert "bad: no such mount" in caplog.text
    assert not [actor for actor in world.actors.values() if actor.node is second]


def test_where_no_machine_works_the_job_names_them_and_marks_no_video_as_failed(jobs_of):
    world, results = World(LAPTOP), []
    world.bad_nodes = {"a"}
    with pytest.raises(UnlocError, match=r"laptop: no such mount"):
        results.extend(Supervisor(world, -1, None, TIMEOUT).results(jobs_of(200)))
    assert not results and not world.actors


def test_a_machine_that_fails_now_and_then_finishes_its_videos(jobs_of):
    world, rng = World(LAPTOP), random.Random(0)

    def sometimes(actor, job):
        return (
            VideoTokens({"video_id": job.video_id}, None)
            if rng.random() < 0.7
            else Failure(job.video_id, MACHINE, "full")
        )

    world.gives = sometimes
    results = run(world, jobs_of(100))
    assert len(results) == 100 and sum(isinstance(result, Failure) for result in results.values()) < 5


def test_one_video_that_no_machine_can_do_is_left_to_the_next_run_and_the_others_are_done(jobs_of):
    world = World(LAPTOP)
    world.gives = lambda actor, job: (
        Failure("v3", MACHINE, "permission denied")
        if job.video_id == "v3"
        else VideoTokens({"video_id": job.video_id}, None)
    )
    results = run(world, jobs_of(60))
    assert [result.reason for result in results.values() if isinstance(result, Failure)] == [MACHINE]


def test_a_file_that_this_process_cannot_read_either_is_the_videos_failure(jobs_of):
    world, jobs = World(LAPTOP), jobs_of(5)
    jobs[3] = Job("v3", jobs[3].path.with_name("gone"))
    world.gives = lambda actor, job: (
        VideoTokens({"video_id": job.video_id}, None) if job.path.exists() else Failure("v3", MACHINE, "no such file")
    )
    assert run(world, jobs)["v3"].reason == "not_found"


@pytest.mark.parametrize(("file_bytes", "is_final"), [(7, True), (0, False), (None, False)])
def test_a_failure_counts_only_where_the_worker_saw_the_file_that_is_there(jobs_of, file_bytes, is_final):
    world, jobs, tries = World(LAPTOP), jobs_of(1), []

    def fail_once(actor, job):
        tries.append(job)
        ok = VideoTokens({"video_id": job.video_id}, None)
        return Failure(job.video_id, "truncated", "cut off", file_bytes=file_bytes) if len(tries) == 1 else ok

    world.gives = fail_once
    assert isinstance(run(world, jobs)["v0"], Failure) == is_final


@pytest.mark.parametrize("nodes", [LAPTOP, GPU_MACHINE])
def test_a_video_that_kills_its_workers_is_quarantined_and_takes_no_other_with_it(jobs_of, nodes):
    world = World(nodes)
    world.gives = lambda actor, job: None if job.video_id == "v7" else VideoTokens({"video_id": job.video_id}, None)
    results = run(world, jobs_of(40))
    assert len(results) == 40 and results["v7"].reason == "worker_died" and "5 workers died" in results["v7"].message
    assert sum(isinstance(result, Failure) for result in results.values()) == 1


@pytest.mark.parametrize("nodes", [LAPTOP, [*GPU_MACHINE, Node("b", "second", 2, 1)]])
def test_random_kills_and_stops_lose_nothing(jobs_of, nodes):
    for seed in range(20):
        require_nothing_lost_by_kills(World(nodes), jobs_of(500), random.Random(seed))


def require_nothing_lost_by_kills(world, jobs, rng):

    def disturb(world):
        if world.actors and world.seconds % 30 == 0 and world.seconds < 600:
            victim = rng.choice(list(world.actors))
            if rng.random() < 0.5:
                world.kill(victim)
            else:
                world.actors[victim].is_stopped = True

    world.on_second = disturb
    require_all_done(world, jobs)


def test_an_actor_that_finds_no_room_is_reported_again_and_again(jobs_of, caplog):
    world = World(GPU_MACHINE)
    world.does_not_start = {"a"}
    world.on_second = lambda world: world.does_not_start.clear() if world.seconds > 300 else None
    require_all_done(world, jobs_of(5))
    told = [record for record in caplog.records if "2 encoder(s)" in record.message]
    assert len(told) > 3 and "free: 0 CPU, 0 GPU" in told[0].message


def test_time_that_the_driver_spends_is_not_silence_of_the_actors(jobs_of, caplog):
    world, jobs = World(LAPTOP), jobs_of(30)
    for result in Supervisor(world, -1, None, TIMEOUT).results(jobs):
        world.seconds += 1000 if result.meta["video_id"] == "v3" else 0
    assert "silent" not in caplog.text


def test_an_exception_in_a_worker_is_a_failure_of_its_machine(jobs_of, caplog):
    world = World([*LAPTOP, Node("b", "old", 4, 0)])
    events_of = world._events_of

    def fail(number, actor):
        return (
            [Event(number, "raised", "ModuleNotFoundError: unloc")]
            if actor.node.node_id == "b"
            else events_of(number, actor)
        )

    world._events_of = fail
    require_all_done(world, jobs_of(600))
    assert "old gets no more videos" in caplog.text and "ModuleNotFoundError: unloc" in caplog.text


def test_the_pool_fits_into_the_cores_of_the_cluster():
    for cpus in range(1, 9):
        for gpus in (0, 1, 4):
            for workers in (-1, 1, 3, 64):
                for encoders in (None, 0, 1, 2, 8):
                    num_workers, num_encoders = pool_size([Node("a", "", cpus, gpus)], workers, encoders, 1000)
                    assert num_workers + num_encoders <= max(cpus, 1 + (num_encoders > 0))
                    assert num_encoders <= num_workers and num_encoders <= (gpus or 8)
