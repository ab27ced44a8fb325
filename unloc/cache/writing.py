"""Writing a cache: shards of videos and of texts, each in one rename; and its audit, against their checksums."""

import hashlib
import json
import shutil
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.dtype import STORED_DTYPES
from unloc.cache.metadata import FORMAT, SHARD_NAME, group_metadata, read_attributes, read_checked, write_checked
from unloc.cache.reading import COLUMNS, ROWS, Cache, ShardMap
from unloc.callbacks import OnProgress
from unloc.errors import CacheError, FingerprintError
from unloc.files import LOCK, commit_folder, file_crc32c, write_file

CHUNK_ROWS = 32  # rows per chunk where videos differ in length; a video begins on a chunk
TEXTS_PER_SHARD = 20_000


@dataclass(frozen=True)
class VideoTokens:
    """What one video adds to a shard."""

    meta: dict  # its row: video_id, times_seconds, sha256, …
    tokens: np.ndarray  # (T, views, D) as they are stored (`dtype.to_stored`)

    @property
    def video_id(self) -> str:
        """The id under which it is stored."""
        return self.meta["video_id"]


def stored_video(cache: Cache, video_id: str) -> VideoTokens:
    """One of a cache's `places` as it was given to `write_video_shard`."""
    row = {key: value for key, value in cache.row(video_id).items() if key not in ("first_row", "num_tokens", "shard")}
    return VideoTokens(row, cache.stored_tokens(video_id))


def create_or_check(path: Path, fingerprint: dict, versions: dict) -> None:
    """Create the cache, or check its fingerprint. Raises FingerprintError; CacheError for another kind of folder."""
    if (path / "zarr.json").is_file():
        if differing := fingerprint_differences(Cache(path).fingerprint, fingerprint, names=("cache", "now")):
            advice = f"use the same settings, or a new cache such as {path}-{fingerprint_hash(fingerprint)}"
            raise FingerprintError(f"{path}: was made with other settings ({differing}); {advice}")
        return
    if path.exists():  # an interrupted creation leaves these; `zarr.json` comes last
        known = ("shards", "texts", "zarr.json", ".zarr.json.part", LOCK)
        if not path.is_dir() or any(item.name not in known for item in path.rglob("*")):
            raise CacheError(f"{path}: is neither empty nor a cache; give a new folder")
    attributes = {"unloc_cache": FORMAT, "fingerprint": fingerprint, "versions": versions}
    write_file(path / "shards" / "zarr.json", group_metadata(attributes))
    write_file(path / "texts" / "zarr.json", group_metadata({}))
    write_file(path / "zarr.json", group_metadata(attributes))


def fingerprint_differences(one: dict, other: dict, *, names: tuple[str, str]) -> str:
    """Every key that differs with both values, for a message; empty where the fingerprints are equal."""
    one, other = (json.loads(json.dumps(values)) for values in (one, other))  # as read back: tuples become lists
    keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return "; ".join(f"{key}: {names[0]} {one.get(key)!r}, {names[1]} {other.get(key)!r}" for key in keys)


def fingerprint_hash(fingerprint: dict) -> str:
    """Eight digits of the sha256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]


def write_projections(path: Path, projections: Mapping[str, np.ndarray]) -> None:
    """Write the tower's own projections of tokens that the cache keeps before them (`Cache.projections`)."""
    stored = {
        kind: {"shape": list(weight.shape), "float32": b64encode(weight.astype("<f4").tobytes()).decode()}
        for kind, weight in projections.items()
    }
    write_checked(path / "projections.json", stored)


def write_video_shard(
    path: Path, name: str, videos: Iterable[VideoTokens], failed: list[dict], dtype: str, lengths: Sequence[int] = ()
) -> None:
    """Write or replace a shard of videos and of rows of failed ones; with `lengths` `videos` may be a generator."""
    lengths = lengths or [len(video.tokens) for video in videos]
    chunk = lengths[0] if len(set(lengths)) == 1 else CHUNK_ROWS
    firsts = np.cumsum([0, *(-(-length // chunk) * chunk for length in lengths)]).tolist()
    columns = {column: [] for column in COLUMNS}

    def tokens_of_videos(rows: Path) -> Iterator[np.ndarray]:
        """The tokens of each video; its row is written on the way."""
        with rows.open("w", encoding="utf-8") as handle:
            for video, first, length in zip(videos, firsts, lengths, strict=False):
                assert video.tokens.dtype == STORED_DTYPES[dtype], "convert tokens by dtype.to_stored"
                row = video.meta | {"first_row": first, "num_tokens": length}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                for column, values in columns.items():
                    values.append(row.get(column))
                yield video.tokens

    with _new_shard(path / "shards" / name, {"videos": columns, "failed": failed}) as folder:
        if lengths:
            _write_array(folder / "frames", tokens_of_videos(folder / ROWS), firsts, chunk, dtype)


def write_texts(path: Path, texts: Iterable[tuple[str, np.ndarray]], dtype: str) -> int:
    """Write texts with their (K, D) stored tokens into new shards; how many they were."""
    texts, count = iter(texts), 0
    while part := list(islice(texts, TEXTS_PER_SHARD)):
        existing = [int(item.name) for item in (path / "texts").glob("[0-9]*")]
        target = path / "texts" / SHARD_NAME.format(max(existing, default=-1) + 1)
        *firsts, end = np.cumsum([0, *(len(tokens) for _, tokens in part)]).tolist()
        table = [[text, first, len(tokens)] for (text, tokens), first in zip(part, firsts, strict=True)]
        data = np.concatenate([tokens for _, tokens in part])
        with _new_shard(target, {"texts": table}) as folder:
            _write_array(folder / "tokens", [data], [0, -(-end // CHUNK_ROWS) * CHUNK_ROWS], CHUNK_ROWS, dtype)
        count += len(part)
    return count


@contextmanager
def _new_shard(target: Path, table: dict) -> Iterator[Path]:
    """A folder to be filled; at the end it gets its table, with the checksums of its files, and its name."""
    folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    folder.mkdir(parents=True)
    yield folder
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    checksums = {item.relative_to(folder).as_posix(): file_crc32c(item) for item in files}
    (folder / "zarr.json").write_bytes(group_metadata({**table, "files": checksums}))
    commit_folder(folder, target)


def _write_array(path: Path, parts: Iterable[np.ndarray], firsts: Sequence[int], chunk_rows: int, dtype: str) -> None:
    """One uncompressed Zarr v3 array in one shard file; its parts begin at the rows `firsts`, zeros fill the gaps.

    The last of `firsts` is the number of all rows. zarr writes the metadata, but would hold the shard file in memory
    several times: chunks, then offset and length of each as uint64, then the crc32c of these (`sharding_indexed`).
    """
    import zarr  # here: it takes 0.4 s, which readers need not wait for

    parts = iter(parts)
    part = next(parts)
    shape, row_bytes = (firsts[-1], *part.shape[1:]), part[:1].nbytes
    bits = {"bits_of": "bfloat16", "value": "the uint16 shifted left by 16 bits, read as float32"}
    zarr.create_array(
        store=str(path),
        shape=shape,
        dtype=STORED_DTYPES[dtype],
        chunks=(chunk_rows, *shape[1:]),
        shards=shape,
        compressors=None,
        filters=None,
        attributes=bits if dtype == "bfloat16" else None,
    )
    file = path / "c" / Path(*"0" * len(shape))
    file.parent.mkdir(parents=True)
    with file.open("wb") as handle:
        for one, end in zip(chain([part], parts), firsts[1:], strict=True):
            handle.write(np.ascontiguousarray(one))
            handle.write(bytes(end * row_bytes - handle.tell()))
        chunk_bytes = chunk_rows * row_bytes
        index = np.asarray([(at, chunk_bytes) for at in range(0, handle.tell(), chunk_bytes)], dtype="<u8").tobytes()
        handle.write(index + google_crc32c.value(index).to_bytes(4, "little"))


def token_checksum(tokens: np.ndarray) -> str:
    """sha256 of a video's token bytes as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(tokens).reshape(-1).view(np.uint8)).hexdigest()


@dataclass(frozen=True)
class Damage:
    """One folder or file of a cache that is not what was written."""

    place: str  # relative to the cache: `shards/00003`, `texts/00000`, `shards/zarr.json`, `plan.json`
    reason: str
    broken: tuple[str, ...] = ()  # videos whose tokens or row are lost; unknown where the shard's table is damaged


@dataclass(frozen=True)
class Audit:
    """What was read and which of it is damaged."""

    num_videos: int
    num_texts: int
    damages: tuple[Damage, ...]


def audit_cache(path: Path, on_progress: OnProgress = lambda done, total: None) -> Audit:
    """Compare every byte; `on_progress` gets shards done and all. Raises MissingError; CacheError: no fingerprint."""
    Cache(path)
    damages, video_ids, num_texts = [], set(), 0
    for name in ("shards/zarr.json", "texts/zarr.json", "aliases.json", "plan.json", "projections.json"):
        try:
            read_attributes((path / name).parent) if "/" in name else read_checked(path / name)
        except CacheError:
            damages.append(Damage(name, "is not what was written"))
    folders = [*sorted(path.glob("shards/[0-9]*")), *sorted(path.glob("texts/[0-9]*"))]
    for number, folder in enumerate(folders):
        on_progress(number, len(folders))
        place = f"{folder.parent.name}/{folder.name}"
        try:
            table = read_attributes(folder)
        except CacheError:
            damages.append(Damage(place, "its table is damaged: the names of what it holds cannot be read"))
            continue
        num_texts += len(table.get("texts", ()))
        video_ids.update(table.get("videos", {}).get("video_id", ()))
        if reason := _damaged_file(folder, table["files"]):
            damages.append(Damage(place, reason, tuple(_broken_videos(folder, table)) if "videos" in table else ()))
    on_progress(len(folders), len(folders))
    return Audit(len(video_ids), num_texts, tuple(damages))


def _damaged_file(folder: Path, checksums: dict[str, str]) -> str | None:
    """What is wrong with a shard's files against the checksums in its table; None where nothing is."""
    found = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()} - {"zarr.json"}
    for name in sorted(checksums.keys() | found):
        if name not in found:
            return f"{name} is gone"
        if name not in checksums:
            return f"{name} is not of this shard"
        if file_crc32c(folder / name) != checksums[name]:
            return f"checksum of {name} differs"
    return None


def _broken_videos(folder: Path, table: dict) -> list[str]:
    """Videos of a shard with an intact table whose tokens or row are not what was written."""
    with suppress(CacheError, FileNotFoundError):
        if file_crc32c(folder / ROWS) == table["files"].get(ROWS):
            frames = ShardMap(folder / "frames")
            rows = map(json.loads, (folder / ROWS).read_bytes().splitlines())
            spans = ((row, frames.rows(row["first_row"], row["num_tokens"])) for row in rows)
            return [row["video_id"] for row, tokens in spans if token_checksum(tokens) != row["tokens_sha256"]]
    return table["videos"]["video_id"]
