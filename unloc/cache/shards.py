"""From results to shards, for extract, merge and import: places are planned, results staged, shards written.

CACHE/plan.json has the ids of the videos of each shard, in order; CACHE/staging/HASH the result of one whose shard is
not complete yet. As places are planned before results are known, an interrupted job ends with the same bytes.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.metadata import SHARD_NAME, read_checked, write_checked
from unloc.cache.reading import Cache
from unloc.cache.writing import VideoTokens, write_video_shard
from unloc.callbacks import OnProgress
from unloc.errors import CacheError
from unloc.files import replacing

logger = logging.getLogger(__name__)
FAILED = "failed"
SHARD_BYTES = 256_000_000  # of tokens: a shard that would be larger is split


@dataclass(frozen=True)
class Failure:
    """Why a video has no tokens."""

    video_id: str
    reason: str  # one word: not_found, truncated, decode_error, timeout, signal, out_of_memory, …
    message: str
    attempts: int = 1
    file_bytes: int | None = None
    file_mtime_ns: int | None = None
    partial_allowed: bool = False  # was it tried with --allow-partial?

    def __post_init__(self) -> None:
        # A path may hold bytes that are no text; JSON cannot.
        object.__setattr__(self, "message", self.message.encode("utf-8", "backslashreplace").decode())

    @property
    def file_identity(self) -> dict:
        """Size and time of change of the file that failed."""
        return {"file_bytes": self.file_bytes, "file_mtime_ns": self.file_mtime_ns}

    def to_row(self) -> dict:
        """As in a shard's table and in the ledger."""
        return {"status": FAILED, **vars(self)}

    @classmethod
    def from_row(cls, row: dict) -> "Failure":
        """The inverse of `to_row`."""
        return cls(**{key: value for key, value in row.items() if key != "status"})


Result = VideoTokens | Failure


@dataclass(kw_only=True)
class Added:
    """What a merge or an import added to a cache."""

    videos: int = 0
    cached_before: int = 0
    texts: int = 0
    failures: list[dict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # videos of the manifest that the source of an import lacks


def last_failures(cache: Cache) -> dict[str, Failure]:
    """The last failure of every video that ever failed."""
    return {row["video_id"]: Failure.from_row(row) for table in cache.tables.values() for row in table["failed"]}


def failures_of(cache: Cache) -> dict[str, Failure]:
    """The last failure of every video that is not cached."""
    return {video_id: failure for video_id, failure in last_failures(cache).items() if video_id not in cache}


def open_shards(cache: Cache) -> dict[str, list[str]]:
    """Ids of the videos of every shard that is planned and not written."""
    return {name: ids for name, ids in read_checked(cache.path / "plan.json").items() if name not in cache.tables}


def next_shard(path: Path, plan: Collection[str]) -> int:
    """The number of the first shard that is neither written nor planned."""
    names = {item.name for item in (path / "shards").glob("[0-9]*")}.union(plan)
    return 1 + max((int(name.partition("-")[0]) for name in names), default=-1)


def write_alone(path: Path, video: VideoTokens, dtype: str) -> None:
    """Write a video into a new shard of its own, which no plan names, of a cache that this process has locked."""
    name = SHARD_NAME.format(next_shard(path, read_checked(path / "plan.json")))
    write_video_shard(path, name, [video], [], dtype)


class ShardWriter:
    """Writes the shards of a cache that this process has locked; continues where an interrupted job stopped."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.path = cache, cache.path
        self.plan = read_checked(self.path / "plan.json")
        self.open = open_shards(cache)  # ids of the videos of every shard to be written
        self.staging = self.path / "staging"
        self.staging.mkdir(exist_ok=True)
        files = {self._staged_file(video_id) for video_id in self.planned}
        for item in set(self.staging.iterdir()) - files:
            item.unlink()
        results = ((video_id, self.staged(video_id)) for video_id in self.planned)
        # Number and bytes of the tokens of every planned video that has a result, (0, 0) for a failure.
        self.done = {video_id: _size(result) for video_id, result in results if result is not None}

    @property
    def planned(self) -> list[str]:
        """Ids of the videos of all open shards, in order."""
        return [video_id for ids in self.open.values() for video_id in ids]

    @property
    def complete(self) -> list[str]:
        """Names of open shards whose videos all have a result."""
        return [name for name, ids in self.open.items() if all(video_id in self.done for video_id in ids)]

    def add(self, video_ids: list[str], shard_size: int) -> None:
        """Give videos places in new shards; places in the plan are kept from then on."""
        first = next_shard(self.path, self.plan)
        parts = [video_ids[start : start + shard_size] for start in range(0, len(video_ids), shard_size)]
        if parts:
            self.assign({SHARD_NAME.format(first + number): part for number, part in enumerate(parts)})

    def assign(self, places: dict[str, list[str]]) -> None:
        """Open shards for these videos; an existing shard stays as it is until it is written again."""
        self.plan |= places
        self.open |= places
        write_checked(self.path / "plan.json", self.plan)

    def release(self, video_ids: Collection[str]) -> None:
        """Take videos that will get no result now out of the open shards, so that these can be written."""
        for name, ids in list(self.open.items()):
            self.plan[name] = self.open[name] = [video_id for video_id in ids if video_id not in video_ids]
            if not self.open[name]:
                del self.plan[name], self.open[name]
        if video_ids:
            write_checked(self.path / "plan.json", self.plan)

    def fill(
        self, video_ids: list[str], results: dict[str, Callable[[], Result]], shard_size: int, on_progress: OnProgress
    ) -> Added:
        """Add videos that are not here yet, and write every open shard whose videos all have `results`."""
        known, added = {*self.planned, *self.cache.places, *self.cache.aliases}, Added()
        self.add([video_id for video_id in video_ids if video_id not in known], shard_size)
        num_planned = len(self.planned)
        for name, ids in list(self.open.items()):
            if any(video_id not in self.done and video_id not in results for video_id in ids):
                logger.warning("shard %s waits for videos of another job", name)
                continue
            for video_id in ids:
                if video_id not in self.done:
                    self.put(results[video_id]())
                if self.done[video_id][0]:
                    added.videos += 1
                else:
                    added.failures.append(self._whole(video_id).to_row())
                on_progress(added.videos + len(added.failures), num_planned)
            self.write(name)
        return added

    def put(self, result: Result) -> None:
        """Stage a result: a line of JSON, tokens, a crc32c over both. Not flushed: a power cut may damage the last."""
        if isinstance(result, Failure):
            head, tokens = {"failure": result.to_row()}, b""
        else:
            tokens = np.ascontiguousarray(result.tokens)
            head = {"meta": result.meta, "dtype": tokens.dtype.str, "shape": tokens.shape}
        checksum = google_crc32c.Checksum()
        with replacing(self._staged_file(result.video_id), sync=False) as temporary, temporary.open("wb") as handle:
            for part in (json.dumps(head).encode() + b"\n", bytes(tokens)):
                checksum.update(part)
                handle.write(part)
            handle.write(checksum.digest())
        self.done[result.video_id] = _size(result)

    def staged(self, video_id: str) -> Result | None:
        """The staged result of a video; None where there is none, or it is damaged."""
        path = self._staged_file(video_id)
        raw = path.read_bytes() if path.is_file() else b""
        if google_crc32c.Checksum(raw[:-4]).digest() != raw[-4:]:
            return None
        line, _, tokens = raw[:-4].partition(b"\n")
        stored = json.loads(line)
        if "failure" in stored:
            return Failure.from_row(stored["failure"])
        return VideoTokens(stored["meta"], np.frombuffer(tokens, dtype=stored["dtype"]).reshape(stored["shape"]))

    def forget(self, video_ids: Iterable[str]) -> None:
        """Remove staged results."""
        for video_id in video_ids:
            self._staged_file(video_id).unlink(missing_ok=True)
            self.done.pop(video_id, None)

    def replaced(self, name: str) -> list[str]:
        """Videos of a complete shard that get new tokens: an earlier shard has tokens of them."""
        return [video_id for video_id in self.open[name] if video_id in self.cache.places and self.done[video_id][0]]

    def _staged_file(self, video_id: str) -> Path:
        return self.staging / hashlib.sha256(video_id.encode()).hexdigest()[:24]

    def write(self, name: str) -> None:
        """Write a complete shard, above SHARD_BYTES as `00003`, `00003-1`, … Raises CacheError for a damaged result."""
        parts, room = [[]], SHARD_BYTES
        for video_id in self.open.pop(name):
            if parts[-1] and self.done[video_id][1] > room:
                parts.append([])
                room = SHARD_BYTES
            parts[-1].append(video_id)
            room -= self.done[video_id][1]
        names = [name, *(f"{name}-{number}" for number in range(1, len(parts)))]
        if len(parts) > 1:
            self.plan |= dict(zip(names, parts, strict=True))
            write_checked(self.path / "plan.json", self.plan)
        for part, part_ids in zip(names, parts, strict=True):
            lengths = {video_id: self.done[video_id][0] for video_id in part_ids if self.done[video_id][0]}
            failed = [self._whole(video_id).to_row() for video_id in part_ids if video_id not in lengths]
            videos = map(self._whole, lengths)
            write_video_shard(self.path, part, videos, failed, self.cache.dtype, [*lengths.values()])
            self.forget(part_ids)

    def _whole(self, video_id: str) -> Result:
        result = self.staged(video_id)
        if result is None:
            raise CacheError(f"{self.path}: the staged result of {video_id!r} is damaged; run the same command again")
        return result


def _size(result: Result) -> tuple[int, int]:
    return (0, 0) if isinstance(result, Failure) else (len(result.tokens), result.tokens.nbytes)
