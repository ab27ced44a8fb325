"""What a command and all that it starts cost: CPU seconds and memory of a tree of processes, read from /proc."""

import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Process:
    """One process as it was seen."""

    parent: int
    command: str
    cpu_seconds: float
    resident_bytes: int


def processes_below(root: int) -> dict[int, Process]:
    """A process and all that it started, however far down, by pid."""
    everyone = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            everyone[int(folder.name)] = _process(folder)
    below, before = {root}, set()
    while below != before:
        before = below
        below = below | {pid for pid, process in everyone.items() if process.parent in below}
    return {pid: everyone[pid] for pid in below if pid in everyone}


def _process(folder: Path) -> Process:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    resident = int((folder / "statm").read_text().split()[1]) * PAGE
    return Process(int(fields[1]), command, (int(fields[11]) + int(fields[12])) / TICKS, resident)


@dataclass
class Watched:
    """A command that has ended, and what was seen of its processes meanwhile."""

    seconds: float = 0.0
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    """Of each process, when it was last seen."""
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """(seconds since the start, bytes of the largest process of each kind: driver, worker, decoder)."""

    @property
    def total_cpu_seconds(self) -> float:
        """Of all processes together."""
        return sum(self.cpu_seconds.values())


def watch(command: list[str], *, every_seconds: float = 0.25) -> Watched:
    """Run a command to its end. Raises CalledProcessError where it fails."""
    watched, started = Watched(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(every_seconds):
            seen = processes_below(process.pid)
            watched.cpu_seconds.update({pid: one.cpu_seconds for pid, one in seen.items()})
            watched.memory.append((time.perf_counter() - started, _largest(seen, process.pid)))

    watcher = threading.Thread(target=look)
    watcher.start()
    code = process.wait()
    watched.seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return watched


def _largest(seen: dict[int, Process], driver: int) -> dict[str, int]:
    largest: dict[str, int] = {}
    for pid, process in seen.items():
        kind = "driver" if pid == driver else _kind(process, seen)
        if kind:
            largest[kind] = max(largest.get(kind, 0), process.resident_bytes)
    return largest


def _kind(process: Process, seen: dict[int, Process]) -> str | None:
    """Actors of Ray are named by their class; what they fork has their name."""
    if "ray::VideoWorker" not in process.command:
        return None
    parent = seen.get(process.parent)
    return "decoder" if parent and "ray::VideoWorker" in parent.command else "worker"
