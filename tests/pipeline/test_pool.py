"""The supervisor with real Ray actors: both layouts write the same bytes as one process, whatever dies or joins.

All sizes and failures with simulated actors: test_supervisor.py. Many random kills: test_soak.py.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.process_tree import processes_below
from pipeline.decoding import Limits
from pipeline.extract import ExtractOptions, extract
from tests.conftest import render_video
from tests.pipeline.comparison import check_equal, files_of, render_videos
from unloc.inference.encode import EncodeConfig

CONFIG = EncodeConfig(fps=5.0)
ROOT = Path(__file__).resolve().parents[2]
FUSED = ExtractOptions(workers=2, encoders=0, shard_size=3, limits=Limits(recycle_videos=2))
SPLIT = ExtractOptions(workers=1, encoders=8, shard_size=3)
MANY = replace(SPLIT, workers=3)  # of which two decoders and two encoders fit into `one_ray`
TEXTS = ["a red square", "a man walks"]


@pytest.fixture(scope="module")
def files(video_folder) -> dict[str, Path]:
    return files_of(video_folder)


@pytest.fixture(scope="module")
def clean(tmp_path_factory, files) -> Path:
    cache = tmp_path_factory.mktemp("clean") / "cache"
    extract(cache, CONFIG, ExtractOptions(workers=0, shard_size=3), files, [], TEXTS)
    return cache


def actors(name: str) -> list[int]:
    """Pids of this process's Ray actors of a class, without what they forked."""
    ours = processes_below(os.getpid())
    pids = {pid: one.parent for pid, one in ours.items() if one.command.startswith(f"ray::{name}")}
    return [pid for pid, parent in pids.items() if parent not in pids]


def at_first_result(action):
    """A progress callback that does something after the first video."""

    def on_progress(done, due, frames, failed):
        if done == 1:
            action()

    return on_progress


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (FUSED, ["VideoWorker"]),
        (SPLIT, ["EncodeWorker", "VideoWorker"]),
        pytest.param(MANY, ["EncodeWorker", "VideoWorker"], marks=pytest.mark.slow),
    ],
)
def test_both_layouts_write_the_bytes_of_one_process_though_actors_are_killed(
    clean, files, one_ray, tmp_path, options, names, caplog
):
    killed = []

    def kill():
        killed.extend(actors(name)[0] for name in names)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    done = extract(tmp_path / "cache", CONFIG, options, files, [], TEXTS, at_first_result(kill))
    assert len(killed) == len(names) and done.cached_now == 7 and done.seconds_start_up > 0
    check_equal(tmp_path / "cache", clean)
    if options is not FUSED:
        assert f"--encoders 8: {2 if options is MANY else 1} can run" in caplog.text
        assert "PyTorch sees none" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("options", "name"), [(FUSED, "VideoWorker"), (MANY, "VideoWorker"), (MANY, "EncodeWorker")])
def test_a_stopped_actor_is_replaced(clean, files, one_ray, tmp_path, options, name, caplog):
    stopped = []

    def stop():
        stopped.extend(actors(name))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    options = replace(options, limits=Limits(timeout_seconds=15.0))
    done = extract(tmp_path / "cache", CONFIG, options, files, [], TEXTS, at_first_result(stop))
    assert stopped and done.cached_now == 7 and "silent for" in caplog.text
    check_equal(tmp_path / "cache", clean)


SCRIPT = """
import itertools, json, logging, sys, time
from pathlib import Path
import ray
from pipeline.extract import ExtractOptions, extract
from unloc.inference.encode import EncodeConfig

folder, out, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
logging.basicConfig(level=logging.WARNING, format="note: %(message)s")
found = sorted(folder.glob("*.mp4"))
ray.init(address="local", include_dashboard=False, log_to_driver=False, **given["resources"])
for encoders, workers, videos in given["cases"]:
    files = {f"v{n}": found[n] for n in range(videos)}
    cache = out / f"{encoders}_{workers}_{videos}"
    options = ExtractOptions(workers=workers, encoders=encoders)
    done = extract(cache, EncodeConfig(num_frames=1), options, files, [], [])
    print(encoders, workers, videos, done.cached_now, done.failed, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 2])
def test_every_size_of_pool_ends_with_all_videos(tmp_path, gpus):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(200):
        render_video(folder / f"v{number:03}.mp4", num_frames=2, seed=number)
    cases = [list(case) for case in itertools.product([1, 2, 8], [-1, 1, 3, 64], [0, 1, 5, 200])]
    given = json.dumps({"resources": {"num_cpus": 4, "num_gpus": gpus}, "cases": cases})
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path), given]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    done = [list(map(int, line.split())) for line in process.stdout.splitlines() if line[0].isdigit()]
    assert done == [[*case, case[2], 0] for case in cases]


@pytest.fixture
def cluster():
    """A cluster with a head node of two CPUs; the test adds nodes."""
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made
    with suppress(Exception):
        made.shutdown()


class Command:
    """`unloc extract` over videos on a cluster, in a process of its own."""

    def __init__(self, videos: tuple[Path, Path], cache: Path, *words: object) -> None:
        command = [sys.executable, "-m", "unloc", "extract", videos[1], "--videos", videos[0], "--cache", cache]
        self.ledger = cache / "ledger.jsonl"
        self.process = subprocess.Popen(
            [*map(str, command), "--fps", "25", "--shard-size", "20", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, videos: int) -> None:
        """Until so many are in the ledger."""
        while self.process.poll() is None:
            if self.ledger.is_file() and len(self.ledger.read_bytes().splitlines()) >= videos:
                return
            time.sleep(0.05)

    def ended(self) -> tuple[int, str]:
        """(exit code, stderr)."""
        _, stderr = self.process.communicate(timeout=600)
        return self.process.returncode, stderr


@pytest.fixture(scope="module")
def twenty(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 20 shorter ones and their manifest."""
    return render_videos(tmp_path_factory.mktemp("twenty"), [120] * 20)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 60 videos and their manifest."""
    return render_videos(tmp_path_factory.mktemp("sixty"), [240] * 60)


@pytest.fixture(scope="module")
def sixty_clean(sixty, tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("clean") / "cache"
    assert Command(sixty, cache, "--workers", 0).ended()[0] == 0
    return cache


LAYOUTS = {"fused": ("--encoders", 0), "split": ("--encoders", 1)}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_node_that_joins_takes_part_and_one_that_leaves_loses_nothing(cluster, sixty, sixty_clean, tmp_path, layout):
    command = Command(sixty, tmp_path / "cache", "--address", cluster.address, "--workers", -1, *LAYOUTS[layout])
    command.wait_for(5)
    second = cluster.add_node(num_cpus=2)
    command.wait_for(25)
    cluster.remove_node(second, allow_graceful=False)
    code, stderr = command.ended()
    assert code == 0 and "Traceback" not in stderr
    check_equal(tmp_path / "cache", sixty_clean)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_killed_process_of_ray_is_one_line_and_the_next_run_resumes(sixty, sixty_clean, tmp_path, layout, victim):
    command = Command(sixty, tmp_path / "cache", "--workers", 2, *LAYOUTS[layout])
    command.wait_for(5)
    pids = [pid for pid, one in processes_below(command.process.pid).items() if f"/{victim}" in one.command.split()[0]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    code, stderr = command.ended()
    assert pids and code in (1, 2) and "Traceback" not in stderr  # 1: Ray ended the process before it noticed
    assert [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert Command(sixty, tmp_path / "cache", "--workers", 2, *LAYOUTS[layout]).ended()[0] == 0
    check_equal(tmp_path / "cache", sixty_clean)


@pytest.mark.parametrize(
    ("layout", "number"),
    [
        ("fused", signal.SIGTERM),
        pytest.param("fused", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("split", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("split", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_and_a_termination_end_the_job_with_one_line(twenty, tmp_path, layout, number):
    command = Command(twenty, tmp_path / "cache", "--workers", 1, *LAYOUTS[layout])
    command.wait_for(3)
    os.kill(command.process.pid, number)
    code, stderr = command.ended()
    (line,) = [line for line in stderr.splitlines() if not line.startswith("note: ") and "elapsed" not in line]
    assert code == 130 and line.startswith("interrupted; ")


def node_elsewhere(cluster, prepare: str) -> subprocess.Popen:
    """A second node whose mounts differ: `prepare` is run in a mount namespace of its own."""
    started = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=2 --block"
    command = ["unshare", "--mount", "bash", "-c", f"set -e; {prepare}; exec {started}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    for line in process.stdout:
        if b"Local node IP" in line:
            break
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_node_without_the_mount_is_named_and_costs_no_video(cluster, sixty, sixty_clean, tmp_path, layout):
    second = node_elsewhere(cluster, f"mount -t tmpfs tmpfs {sixty[0]}")
    words = ("--address", cluster.address, "--workers", -1, *LAYOUTS[layout])
    try:
        code, stderr = Command(sixty, tmp_path / "cache", *words).ended()
    finally:
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()
    assert code == 0 and "No such file or directory" in stderr and "(failure 1 of 5)" in stderr
    check_equal(tmp_path / "cache", sixty_clean)
    rows = [json.loads(line) for line in (tmp_path / "cache/ledger.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"cached"}
