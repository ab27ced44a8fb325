"""`ray job submit` as docker/README.md prints it, to a local cluster of one node that asks for Ray's token."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.process_tree import processes_below
from tests.conftest import write_manifest
from unloc.annotations.schema import QueryRow, VideoRow
from unloc.cache.opening import open_cache

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def documented_line():
    """The words of the submission, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "docker" / "README.md").read_text())
    (line,) = re.findall(r"^ray job submit .*$", text, re.MULTILINE)
    return shlex.split(line, comments=True)


@pytest.fixture
def head(tmp_path):
    """(dashboard address, environment) of a running head node whose token lies in a home of its own."""
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed: pip install 'unloc[cluster]'")
    temp = Path(f"/tmp/unloc-job-{os.getpid()}")  # Ray's sockets need a short path
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(temp), "PATH": path}
    environment |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    dashboard, client, agent = free_ports(3)
    temp.mkdir()
    start = f"start --head --block --port=0 --num-cpus=2 --disable-usage-stats --dashboard-port={dashboard}"
    start += f" --ray-client-server-port={client} --dashboard-agent-listen-port={agent}"
    with (tmp_path / "head.log").open("w") as log:
        node = subprocess.Popen([RAY, *start.split()], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        for pid in processes_below(node.pid):  # `ray start --block` itself takes 30 s to stop
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=60)
        subprocess.run(["rm", "-rf", str(temp)], check=True)


def test_the_documented_job_submission_extracts_and_its_log_is_readable(unloc, head, video_folder, tmp_path):
    address, environment = head
    rows = VideoRow("v0", "test", 1.5), QueryRow("v0", "test", "1", "a cat", [[0, 1]])
    manifest = write_manifest(tmp_path / "mr.jsonl", *rows)
    assert unloc("data", "pack", manifest, "--videos", video_folder, "--out", tmp_path / "shards")[0] == 0
    words = documented_line()
    assert words[:4] == ["ray", "job", "submit", "--address"]
    line = shlex.join([RAY, *words[1:4], address, *words[5:]]).replace("/mnt/unloc", str(tmp_path))
    line = line.replace("{000000..000127}", "000000").replace("s3://bucket/cache", str(tmp_path / "cache"))
    line = line.replace("--tower ViT-B-16 --pretrained openai", "--tower toy")
    deadline = time.monotonic() + 120
    while not listens(int(address.rpartition(":")[2])) and time.monotonic() < deadline:
        time.sleep(0.1)
    while (done := subprocess.run(shlex.split(line), env=environment, capture_output=True, text=True)).returncode:
        said = done.stdout + done.stderr
        assert "Failed to connect" in said and time.monotonic() < deadline, said  # until the dashboard listens
        time.sleep(1)
    assert "v0" in open_cache(tmp_path / "cache")
