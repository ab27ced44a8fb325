"""`unloc fit --workers N --address`: on a cluster, with the result of a local run though a machine is lost."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="Ray Train needs it: pip install 'ray[train]'")

from tests.training.test_trainer import assert_same_runs, recipe_for
from unloc.recipes import dump_recipe

ROOT = Path(__file__).parents[2]
WORDS = ["train.epochs=15", "train.eval_every_epochs=6", "train.checkpoint_minutes=0.005"]  # 300 steps


@pytest.fixture
def cluster(request):
    """A cluster whose head has as many CPUs as the test's first parameter says."""
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": request.param, "include_dashboard": False})
    yield made
    with suppress(Exception):
        made.shutdown()


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"train"') if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "node_cpus"), [(1, 1), (0, 2)], indirect=["cluster"])
def test_a_node_that_goes_and_comes_back_changes_nothing(cluster, node_cpus, token_world, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_for("mr", *WORDS)))
    words = ["fit", tmp_path / "recipe.yaml", "--manifest", token_world[0], "--cache", token_world[1]]
    words += ["--workers", 2, "--device", "cpu", "--timeout", 20, "--address", cluster.address, "--work-dir"]
    command = [sys.executable, "-m", "unloc", *map(str, words)]

    node = cluster.add_node(num_cpus=node_cpus)
    subprocess.run([*command, tmp_path / "whole"], cwd=ROOT, check=True)
    with (tmp_path / "stderr").open("w") as stderr:
        job = subprocess.Popen([*command, tmp_path / "run"], cwd=ROOT, stderr=stderr)
    while steps_of(tmp_path / "run") < 30 and job.poll() is None:
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    time.sleep(15)
    assert job.poll() is None and steps_of(tmp_path / "run") < 300
    cluster.add_node(num_cpus=node_cpus)
    err = (tmp_path / "stderr").read_text() if job.wait() else ""
    assert job.returncode == 0, err
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "log.txt").read_text().count("processes: ") == 2
    assert "Traceback" not in (tmp_path / "stderr").read_text()
