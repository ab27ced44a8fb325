"""A process that works for another ends with it."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]


def work(parent: int, out: str, is_early: bool) -> None:
    """Set up before or after the parent has died, then write that this process lives on."""
    from unloc.child_process import start_worker

    if is_early:
        start_worker()
    Path(f"{out}.ready").write_text(str(os.getpid()))
    while os.getppid() == parent:
        time.sleep(0.01)
    if not is_early:
        start_worker()
    Path(out).write_text("alive")


def start_and_die(out: str, is_early: bool) -> None:
    """A parent that is killed when its child is ready."""
    get_context("spawn").Process(target=work, args=(os.getpid(), out, is_early)).start()
    while not Path(f"{out}.ready").is_file():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_ends_with_its_parent_also_where_that_dies_before_the_child_is_set_up(tmp_path):
    for is_early in (True, False):
        out = tmp_path / str(is_early)
        call = f"from tests.test_child_process import start_and_die; start_and_die({str(out)!r}, {is_early})"
        assert subprocess.run([sys.executable, "-c", call], cwd=ROOT).returncode == -signal.SIGKILL
        child, until = Path(f"/proc/{Path(f'{out}.ready').read_text()}"), time.monotonic() + 60
        while child.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not child.exists() and not out.exists()
