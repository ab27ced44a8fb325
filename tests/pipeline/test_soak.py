"""Random SIGKILLs of driver, workers, encoders, decoders and nodes of a two-node Ray cluster.

UNLOC_SOAK_KILLS (default 40) is the number of kills, UNLOC_SOAK_SEED their random seed. Each round starts a new cache,
kills three times at random moments, runs the same command to its end, and compares the cache with that of an
undisturbed run. Rounds alternate between the two layouts: workers that encode themselves, and decoders with an encoder.
"""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks.process_tree import processes_below
from pipeline.extract import ExtractOptions, extract
from tests.pipeline.comparison import check_equal, files_of, render_videos
from unloc.inference.encode import EncodeConfig

pytestmark = pytest.mark.slow
NUM_VIDEOS, FPS, SHARD_SIZE, KILLS_PER_ROUND = 24, 25.0, 5, 3
LONGEST_SECONDS = 600
ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("driver", "driver", "worker", "worker", "encoder", "encoder", "decoder", "decoder", "node", "node", "head")


class TwoNodes:
    """A local cluster of a head and a second node, each with one CPU; dead nodes are started again."""

    def __init__(self) -> None:
        self.cluster, self.second = None, None
        self.restart()

    def restart(self) -> None:
        """Start the nodes that do not run."""
        if self.cluster is None:
            self.cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1)

    def kill_second(self) -> None:
        """All processes of the second node at once, as in a power cut."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def kill_all(self) -> None:
        """The head node, and with it the cluster."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)
        self.cluster = self.second = None


def ray_actors() -> dict[str, list[int]]:
    """Pids of the actors by role; `decoder` is the child process of a worker."""
    ours = processes_below(os.getpid())
    workers = {pid: one.parent for pid, one in ours.items() if one.command.startswith("ray::VideoWorker")}
    return {
        "worker": [pid for pid, parent in workers.items() if parent not in workers],
        "decoder": [pid for pid, parent in workers.items() if parent in workers],
        "encoder": [pid for pid, one in ours.items() if one.command.startswith("ray::EncodeWorker")],
    }


class Job:
    """`unloc extract` on the cluster."""

    def __init__(self, folder: Path, manifest: Path, cache: Path, nodes: TwoNodes, encoders: int) -> None:
        self.words = ["extract", manifest, "--videos", folder, "--cache", cache, "--fps", FPS, "--workers", 2]
        self.words += ["--shard-size", SHARD_SIZE, "--encoders", encoders]
        self.cache, self.nodes, self.process = cache, nodes, None

    def start(self) -> None:
        """Run the command (again)."""
        command = [sys.executable, "-m", "unloc", *map(str, self.words), "--address", self.nodes.cluster.address]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end."""
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=seconds)
        return self.process.poll() is not None

    def num_done(self) -> int:
        """Videos in the ledger."""
        ledger = self.cache / "ledger.jsonl"
        return len(ledger.read_bytes().splitlines()) if ledger.is_file() else 0

    def reaches(self, rng: random.Random) -> bool:
        """Let it run until a random moment; False if it ended before."""
        if rng.random() < 0.25:
            return not self.ended_within(rng.uniform(0, 20))
        until = rng.randint(0, NUM_VIDEOS - 1)
        while self.num_done() < until:
            if self.ended_within(0.02):
                return False
        return not self.ended_within(rng.uniform(0, 0.3))

    def finish(self) -> None:
        """Run to the end; a run whose cluster died may fail, the next must not."""
        assert self.ended_within(LONGEST_SECONDS), "hangs"
        for _ in range(3):
            if self.process.returncode == 0:
                return
            self.nodes.restart()
            self.start()
            assert self.ended_within(LONGEST_SECONDS), "hangs"
        pytest.fail(f"ends with {self.process.returncode}")


def kill(target: str, job: Job, rng: random.Random) -> bool:
    """Kill a process of that role; False if there is none."""
    if target == "driver":
        job.process.kill()
        job.process.communicate()
    elif target == "node":
        job.nodes.kill_second()
    elif target == "head":
        job.nodes.kill_all()
    elif not (pids := ray_actors()[target]):
        return False
    else:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
    return True


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> tuple[Path, Path]:
    return render_videos(tmp_path_factory.mktemp("videos"), [40 + 7 * (number % 9) for number in range(NUM_VIDEOS)])


@pytest.fixture(scope="module")
def clean(videos, tmp_path_factory) -> Path:
    cache, options = tmp_path_factory.mktemp("clean") / "cache", ExtractOptions(workers=0, shard_size=SHARD_SIZE)
    extract(cache, EncodeConfig(fps=FPS), options, files_of(videos[0]), [], [])
    return cache


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    two = TwoNodes()
    yield two
    two.cluster.shutdown()


def test_random_kills_over_a_cluster_lose_nothing_and_change_no_byte(videos, clean, nodes, tmp_path):
    rng = random.Random(int(os.environ.get("UNLOC_SOAK_SEED", "0")))
    wanted, killed, rounds, targets = int(os.environ.get("UNLOC_SOAK_KILLS", "40")), Counter(), 0, []
    while killed.total() < wanted:
        rounds += 1
        nodes.restart()
        job = Job(*videos, tmp_path / f"cache{rounds}", nodes, encoders=rounds % 2)
        job.start()
        for _ in range(KILLS_PER_ROUND):
            if not job.reaches(rng):
                break
            targets = targets or rng.sample(TARGETS, len(TARGETS))
            target = targets.pop()
            if kill(target, job, rng):
                killed[f"{target}, {'split' if rounds % 2 else 'fused'}"] += 1
            nodes.restart()
            if job.process.poll() is not None:
                job.start()
        job.finish()
        check_equal(job.cache, clean)
    print(f"{killed.total()} kills in {rounds} rounds: {dict(killed)}; every cache equals the clean one")
