"""What happened to each video: staged results, the plan of shards, and the lease on a cache.

    CACHE/plan.json            which video belongs to which shard, in order; only ever added to
    CACHE/staging/NAME         tokens and row of a video, or why it failed, while its shard is not complete yet
    CACHE/ledger.jsonl         one line per attempt, for people and scripts
    CACHE/lock                 who is writing (`files.folder_lock`)

A video's place is fixed before it is decoded, and a shard is written in that order once all its videos are settled.
So a run that was killed and started again writes the same bytes as one that was not.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.reading import SHARD_NAME, Cache, read_checked
from unloc.cache.writing import VideoTokens, write_checked
from unloc.files import replacing
from unloc.video.video_file import VideoFile, file_identity

logger = logging.getLogger(__name__)
CACHED, FAILED, UNCHANGED = "cached", "failed", "unchanged"
MISSING = "missing"  # the reason of a failure: no file


@dataclass(frozen=True)
class Failure:
    """Why a video has no tokens."""

    video_id: str
    reason: str
    """One word: not_found, truncated, decode_error, timeout, signal, out_of_memory, …"""
    message: str
    attempts: int = 1
    file_bytes: int | None = None
    file_mtime_ns: int | None = None
    partial_allowed: bool = False
    """Was it tried with --allow-partial?"""

    def __post_init__(self) -> None:
        # A path may hold bytes that are no text; a ledger cannot.
        object.__setattr__(self, "message", self.message.encode("utf-8", "backslashreplace").decode())

    def is_of(self, file: VideoFile) -> bool:
        """Has the file not changed since?"""
        return file_identity(file) == {"file_bytes": self.file_bytes, "file_mtime_ns": self.file_mtime_ns}

    def to_row(self) -> dict:
        """As it stands in a shard's table and in the ledger."""
        return {"status": FAILED, **vars(self)}

    @classmethod
    def from_row(cls, row: dict) -> "Failure":
        """From a shard's table, or as it was staged."""
        return cls(**{key: value for key, value in row.items() if key != "status"})


def staged_name(video_id: str) -> str:
    """A file name for any video id."""
    return hashlib.sha256(video_id.encode()).hexdigest()[:24]


class Staging:
    """Settled videos whose shard is not written yet.

    A file is the result's row as a line of JSON, the bytes of its tokens, and a crc32c over both. It is renamed into
    place but not flushed to the disk: a power cut costs what was staged a moment ago, which is then extracted again.
    """

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "staging"
        self.folder.mkdir(exist_ok=True)

    def put(self, result: VideoTokens | Failure) -> None:
        """Keep a result."""
        if isinstance(result, Failure):
            video_id, parts = result.video_id, [_line({"failure": result.to_row()})]
        else:
            video_id, tokens = result.meta["video_id"], np.ascontiguousarray(result.tokens)
            parts = [_line({"meta": result.meta, "dtype": tokens.dtype.str, "shape": tokens.shape}), tokens.data]
        checksum = google_crc32c.Checksum()
        with replacing(self._path(video_id), sync=False) as temporary, temporary.open("wb") as handle:
            for part in parts:
                checksum.update(bytes(part))
                handle.write(part)
            handle.write(checksum.digest())

    def get(self, video_id: str) -> VideoTokens | Failure | None:
        """The result kept for a video, or None. A damaged one is removed and counts as none."""
        path = self._path(video_id)
        if not path.is_file():
            return None
        raw = path.read_bytes()
        if google_crc32c.Checksum(raw[:-4]).digest() != raw[-4:]:
            path.unlink()
            return None
        line, _, rest = memoryview(raw)[:-4].tobytes().partition(b"\n")
        stated = json.loads(line)
        if "failure" in stated:
            return Failure.from_row(stated["failure"])
        return VideoTokens(stated["meta"], np.frombuffer(rest, dtype=stated["dtype"]).reshape(stated["shape"]))

    def tokens_shape(self, video_id: str) -> tuple[tuple[int, ...], int]:
        """Shape and bytes of the tokens kept for a video, without reading them; of a failure ((), 0)."""
        with self._path(video_id).open("rb") as handle:
            stated = json.loads(handle.readline())
        shape = tuple(stated.get("shape", ()))
        return shape, math.prod(shape) * np.dtype(stated["dtype"]).itemsize if shape else 0

    def keep_only(self, video_ids: Iterable[str]) -> None:
        """Forget all but these: results that stand in a shard already, and rests of a killed run."""
        kept = {self._path(video_id).name for video_id in video_ids}
        for item in self.folder.iterdir():
            if item.name not in kept:
                item.unlink()

    def drop(self, video_ids: Iterable[str]) -> None:
        """Forget results."""
        for video_id in video_ids:
            self._path(video_id).unlink(missing_ok=True)

    def _path(self, video_id: str) -> Path:
        return self.folder / staged_name(video_id)


def _line(stated: dict) -> bytes:
    return json.dumps(stated).encode() + b"\n"


class Plan:
    """Which video belongs to which shard: `shards[name]` lists ids in order."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "plan.json"
        self.shards: dict[str, list[str]] = read_checked(self.path)

    def extend(self, video_ids: list[str], shard_size: int) -> None:
        """Give new videos places in new shards, and keep that before anything is decoded."""
        if not video_ids:
            return
        written = {item.name for item in (self.path.parent / "shards").glob("[0-9]*")}
        first = 1 + max((int(name.partition("-")[0]) for name in self.shards.keys() | written), default=-1)
        for number, start in enumerate(range(0, len(video_ids), shard_size)):
            self.shards[SHARD_NAME.format(first + number)] = video_ids[start : start + shard_size]
        self._keep()

    def cut(self, name: str, num_bytes: dict[str, int], most_bytes: int) -> list[str]:
        """Cut a shard into several (`00003`, `00003-1`, …) of at most so many bytes, or of one video; their names."""
        parts, size = [[]], 0
        for video_id in self.shards[name]:
            if parts[-1] and size + num_bytes[video_id] > most_bytes:
                parts.append([])
                size = 0
            parts[-1].append(video_id)
            size += num_bytes[video_id]
        names = [name, *(f"{name}-{number}" for number in range(1, len(parts)))]
        if len(parts) > 1:
            self.shards |= dict(zip(names, parts, strict=True))
            self._keep()
        return names

    def open_shards(self, cache: Cache) -> dict[str, list[str]]:
        """Planned shards that are not written yet."""
        return {name: ids for name, ids in self.shards.items() if name not in cache.table.failed}

    def release(self, cache: Cache, is_wanted: Callable[[str], bool]) -> None:
        """Take videos that no one will settle now out of the shards that are open, so that these can be written."""
        for name, ids in self.open_shards(cache).items():
            kept = [video_id for video_id in ids if is_wanted(video_id)]
            if len(kept) < len(ids):
                self.shards[name] = kept
                if not kept:
                    del self.shards[name]
                self._keep()

    def _keep(self) -> None:
        write_checked(self.path, self.shards)


class Ledger:
    """ledger.jsonl: one line per settled attempt."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "ledger.jsonl"
        if self.path.is_file():
            self._mend()

    def _mend(self) -> None:
        """Cut off half a line, which a full disk leaves."""
        with self.path.open("rb+") as handle:
            data = handle.read()
            handle.truncate(data.rfind(b"\n") + 1)

    def write(self, row: dict) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"unix_time": round(time.time(), 3), **row}, ensure_ascii=False) + "\n")

    def write_cached(self, meta: dict, num_tokens: int) -> None:
        """Add the line of a video that is settled well."""
        row = {key: meta.get(key) for key in ("video_id", "decoder", "seconds_decode", "seconds_encode")}
        self.write({"status": CACHED, **row, "num_tokens": num_tokens})

    def last_rows(self) -> dict[str, dict]:
        """The last line of every video, without its time."""
        if not self.path.is_file():
            return {}
        found = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, KeyError, TypeError):  # a line that the disk has spoilt says nothing
                row = json.loads(line)
                found[row["video_id"]] = {key: value for key, value in row.items() if key != "unix_time"}
        return found


def last_failures(cache: Cache) -> dict[str, Failure]:
    """The last failure of every video that ever failed."""
    rows = (row for shard in cache.table.failed.values() for row in shard)
    return {row["video_id"]: Failure.from_row(row) for row in rows}


def failures_of(cache: Cache) -> dict[str, Failure]:
    """The last failure of every video that is not cached."""
    return {video_id: failure for video_id, failure in last_failures(cache).items() if video_id not in cache}
