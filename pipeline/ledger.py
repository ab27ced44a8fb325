"""What happened to each video: staged results, the plan of shards, and the lease on a cache.

    CACHE/plan.json            which video belongs to which shard, in order; only ever added to
    CACHE/staging/NAME.npz     tokens and row of a video whose shard is not complete yet
    CACHE/staging/NAME.json    row of a video that failed, while its shard is not complete yet
    CACHE/ledger.jsonl         one line per attempt, for people and scripts
    CACHE/lock                 who is writing

A video's place is fixed before it is decoded, and a shard is written in that order once all its videos are settled.
So a run that was killed and started again writes the same bytes as one that was not.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unloc.data.cache import SHARD_NAME, Cache
from unloc.data.cache_writer import VideoTokens, write_atomically
from unloc.errors import CacheError

CACHED, FAILED = "cached", "failed"


@dataclass(frozen=True)
class Failure:
    """Why a video has no tokens."""

    video_id: str
    reason: str
    """One word: not_found, truncated, decode_error, timeout, killed, …"""
    message: str
    attempts: int = 1
    file_bytes: int | None = None
    file_mtime_ns: int | None = None

    def to_row(self) -> dict:
        """As it stands in a shard's table and in the ledger."""
        return {"status": FAILED, **vars(self)}


def staged_name(video_id: str) -> str:
    """A file name for any video id."""
    return hashlib.sha256(video_id.encode()).hexdigest()[:24]


class Staging:
    """Settled videos whose shard is not written yet. Each result is on disk before it counts."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "staging"
        self.folder.mkdir(exist_ok=True)
        for rest in self.folder.glob(".*.part"):  # a killed run was writing it
            rest.unlink()

    def put(self, result: VideoTokens | Failure) -> None:
        """Keep a result durably."""
        if isinstance(result, Failure):
            write_atomically(self._path(result.video_id, "json"), json.dumps(result.to_row()))
            return
        target = self._path(result.meta["video_id"], "npz")
        temporary = target.with_name(f".{target.name}.part")
        with temporary.open("wb") as handle:
            np.savez(handle, tokens=result.tokens, meta=np.asarray(json.dumps(result.meta)))
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)

    def get(self, video_id: str) -> VideoTokens | Failure | None:
        """The result kept for a video, or None. A damaged one counts as none."""
        path = self._path(video_id, "npz")
        if path.is_file():
            try:
                with np.load(path) as stored:
                    return VideoTokens(json.loads(str(stored["meta"])), stored["tokens"])
            except (BadZipFile, ValueError, KeyError, EOFError):
                path.unlink()
        failed = self._path(video_id, "json")
        if failed.is_file():
            row = json.loads(failed.read_text(encoding="utf-8"))
            return Failure(**{key: value for key, value in row.items() if key != "status"})
        return None

    def has(self, video_id: str) -> bool:
        """True where a result is kept."""
        return any(self._path(video_id, suffix).is_file() for suffix in ("npz", "json"))

    def drop(self, video_ids: list[str]) -> None:
        """Forget results that stand in a shard now."""
        for video_id in video_ids:
            for suffix in ("npz", "json"):
                self._path(video_id, suffix).unlink(missing_ok=True)

    def _path(self, video_id: str, suffix: str) -> Path:
        return self.folder / f"{staged_name(video_id)}.{suffix}"


class Plan:
    """Which video belongs to which shard: `shards[name]` lists ids in order."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "plan.json"
        self.shards: dict[str, list[str]] = {}
        if self.path.is_file():
            self.shards = json.loads(self.path.read_text(encoding="utf-8"))

    def extend(self, video_ids: list[str], shard_size: int) -> None:
        """Give new videos places in new shards, and keep that before anything is decoded."""
        first = len(self.shards)
        for number, start in enumerate(range(0, len(video_ids), shard_size)):
            self.shards[SHARD_NAME.format(first + number)] = video_ids[start : start + shard_size]
        if video_ids:
            write_atomically(self.path, json.dumps(self.shards, ensure_ascii=False))

    def open_shards(self, cache: Cache) -> dict[str, list[str]]:
        """Planned shards that are not written yet."""
        return {name: ids for name, ids in self.shards.items() if name not in cache.tables}


class Ledger:
    """ledger.jsonl: one line per settled attempt."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "ledger.jsonl"

    def write(self, row: dict) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"unix_time": round(time.time(), 3), **row}, ensure_ascii=False) + "\n")


def failures_of(cache: Cache) -> dict[str, Failure]:
    """The last failure of every video that is not cached."""
    found = {}
    for table in cache.tables.values():
        for row in table["failed"]:
            found[row["video_id"]] = Failure(**{key: value for key, value in row.items() if key != "status"})
    return {video_id: failure for video_id, failure in found.items() if video_id not in cache}


@contextmanager
def lease(cache: Path) -> Iterator[None]:
    """Hold the cache for writing. Raises CacheError where a living process holds it already."""
    path = cache / "lock"
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            _take_over_or_refuse(path)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}, handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over_or_refuse(path: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (json.JSONDecodeError, FileNotFoundError):
        holder = {}
    alive = holder.get("host") == socket.gethostname() and _process_start(holder.get("pid", -1)) == holder.get(
        "started"
    )
    elsewhere = holder and holder.get("host") != socket.gethostname()
    if (holder and alive) or elsewhere:
        raise CacheError(
            f"{path}: process {holder.get('pid')} on {holder.get('host')} is writing this cache; "
            "wait for it, or delete the lock file if that process is gone"
        )
    path.unlink(missing_ok=True)  # its process is dead


def _process_start(pid: int) -> str | None:
    """A mark of the process of that id that a later process with the same id does not share; None where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
