"""Writing a cache: a new one with its fingerprint, shards of videos, shards of texts; each appears in one rename."""

import fcntl
import hashlib
import json
import os
import shutil
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import google_crc32c
import numpy as np
import zarr

from unloc.cache.dtype import STORED_DTYPES
from unloc.cache.reading import (
    CHECKSUM_KEY,
    COLUMNS,
    FORMAT,
    ROWS,
    SHARD_NAME,
    Cache,
    completed,
    group_checksum,
    open_cache,
)
from unloc.errors import CacheError, FingerprintError
from unloc.files import commit_folder, file_crc32c, write_file

CHUNK_ROWS = 32  # rows per chunk where videos differ in length; a video begins on a chunk


@dataclass(frozen=True)
class VideoTokens:
    """What one video adds to a shard."""

    meta: dict
    """Its row: video_id, times_seconds, sha256, …"""
    tokens: np.ndarray
    """(T, views, D) as they are stored (`token_dtype.to_stored`)."""


def stored_video(cache: Cache, video_id: str) -> VideoTokens:
    """One of a cache's `rows` as it was given to `write_video_shard`."""
    row = {key: value for key, value in cache.rows[video_id].items() if key not in ("first_row", "num_tokens", "shard")}
    return VideoTokens(row, cache.stored_tokens(video_id))


def create_or_check(path: Path, fingerprint: dict, versions: dict) -> None:
    """Create the cache, or make sure that the one there has this fingerprint.

    Raises FingerprintError naming each key that differs, CacheError where the folder holds something else.
    """
    fingerprint = json.loads(json.dumps(fingerprint))  # as it is read back: tuples become lists
    if (path / "zarr.json").is_file():
        differing = fingerprint_differences(open_cache(path).fingerprint, fingerprint, names=("cache", "now"))
        if differing:
            raise FingerprintError(
                f"{path}: was made otherwise ({differing}); extract with the same settings or into a new cache, "
                f"for example --cache {path}-{fingerprint_hash(fingerprint)[:8]}"
            )
        return
    if path.exists() and not (path.is_dir() and all(map(_is_rest_of_creation, path.rglob("*")))):
        raise CacheError(f"{path}: is neither empty nor a cache; give a new folder")
    path.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(path):
        if not (path / "zarr.json").is_file():
            _create(path, {"unloc_cache": FORMAT, "fingerprint": fingerprint, "versions": versions})
            return
    create_or_check(path, fingerprint, versions)  # another process has just made it


def _create(path: Path, attributes: dict) -> None:
    for name, stated in (("shards", attributes), ("texts", {})):
        (path / name).mkdir(exist_ok=True)
        write_file(path / name / "zarr.json", group_metadata(stated))
    write_file(path / "zarr.json", group_metadata(attributes))  # last: with it the cache is there


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two processes that create one cache must not mix their fingerprints."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_rest_of_creation(item: Path) -> bool:
    """True of what a creation leaves that was killed before its last file."""
    return item.name in ("shards", "texts", "zarr.json") or (item.name.startswith(".zarr.json.") and item.is_file())


def fingerprint_differences(one: dict, other: dict, *, names: tuple[str, str]) -> str:
    """Every key that differs with both values, in words; empty where the fingerprints are equal."""
    one, other = completed(one), completed(other)
    keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return "; ".join(f"{key}: {names[0]} {one.get(key)!r}, {names[1]} {other.get(key)!r}" for key in keys)


def fingerprint_hash(fingerprint: dict) -> str:
    """sha256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def group_metadata(attributes: dict) -> str:
    """The `zarr.json` of a group, with a checksum over all its bytes as the last attribute."""
    stated = {"zarr_format": 3, "node_type": "group", "attributes": attributes | {CHECKSUM_KEY: "0" * 8}}
    return _with_checksum(json.dumps(stated, ensure_ascii=False))  # indented Python would write it, ten times slower


def write_checked(path: Path, values: dict) -> None:
    """Write values atomically as JSON with a checksum over all its bytes (`cache.read_checked`)."""
    stated = {"values": values, CHECKSUM_KEY: "0" * 8}
    write_file(path, _with_checksum(json.dumps(stated, ensure_ascii=False)))


def write_projections(path: Path, projections: Mapping[str, np.ndarray]) -> None:
    """Write the tower's own projections of tokens that the cache keeps before them (`Cache.projections`)."""
    written = {
        kind: {"shape": list(weight.shape), "float32": b64encode(weight.astype("<f4").tobytes()).decode()}
        for kind, weight in projections.items()
    }
    write_checked(path / "projections.json", written)


def _with_checksum(text: str) -> str:
    head, _, tail = text.rpartition("0" * 8)
    return head + group_checksum(text.encode()) + tail


def write_video_shard(
    path: Path,
    name: str,
    videos: Iterable[VideoTokens],
    failed: Sequence[dict],
    dtype: str,
    lengths: Sequence[int] | None = None,
) -> None:
    """Write a shard of videos (in this order) and the rows of those that failed; it appears whole or not at all.

    Videos that are not all in memory are taken one at a time where `lengths`, their numbers of tokens, are given. A
    shard of that name that is there already is replaced.
    """
    lengths = [len(video.tokens) for video in videos] if lengths is None else lengths
    firsts, chunk = layout(lengths)
    folder = _fresh(path / "shards" / f".{name}.part")
    columns = {column: [] for column in COLUMNS}

    def tokens_of(videos: Iterable[VideoTokens]) -> Iterator[np.ndarray]:
        with (folder / ROWS).open("w", encoding="utf-8") as handle:
            for video, first, length in zip(videos, firsts, lengths, strict=False):
                row = video.meta | {"first_row": first, "num_tokens": length}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                for column, values in columns.items():
                    values.append(row.get(column))
                yield _as_stored(video, dtype)

    if lengths:
        write_array(folder / "frames", tokens_of(videos), firsts, chunk, dtype)
    _commit(folder, path / "shards" / name, {"videos": columns, "failed": list(failed)})


def layout(lengths: Sequence[int]) -> tuple[list[int], int]:
    """First row of each video, and behind the last one the number of all rows; and the rows of a chunk."""
    chunk = lengths[0] if lengths and len(set(lengths)) == 1 else CHUNK_ROWS
    return np.cumsum([0, *(-(-length // chunk) * chunk for length in lengths)]).tolist(), chunk


def _as_stored(video: VideoTokens, dtype: str) -> np.ndarray:
    if video.tokens.dtype != STORED_DTYPES[dtype]:
        raise CacheError(
            f"video {video.meta['video_id']!r}: tokens are {video.tokens.dtype}, a {dtype} cache stores "
            f"{STORED_DTYPES[dtype]}; convert them with token_dtype.to_stored"
        )
    return video.tokens


def write_text_shard(
    path: Path, texts: Sequence[tuple[str, np.ndarray]], dtype: str, *, name: str | None = None
) -> None:
    """Write a shard of texts: (text, (K, D) stored tokens); by default after those there are."""
    existing = [int(item.name) for item in (path / "texts").glob("[0-9]*")]
    name = name or SHARD_NAME.format(max(existing, default=-1) + 1)
    folder = _fresh(path / "texts" / f".{name}.part")
    table, row = [], 0
    for text, tokens in texts:
        table.append([text, row, len(tokens)])
        row += len(tokens)
    data = np.concatenate([tokens for _, tokens in texts])
    write_array(folder / "tokens", [data], [0, -(-row // CHUNK_ROWS) * CHUNK_ROWS], CHUNK_ROWS, dtype)
    _commit(folder, path / "texts" / name, {"texts": table})


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)  # a rest of a killed run
    folder.mkdir(parents=True)
    return folder


def _commit(folder: Path, target: Path, table: dict) -> None:
    """Give a written folder its table with the checksums of its files, and its name; all is on disk before that."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    checksums = {item.relative_to(folder).as_posix(): file_crc32c(item) for item in files}
    (folder / "zarr.json").write_text(group_metadata({**table, "files": checksums}), encoding="utf-8")
    commit_folder(folder, target)


def write_array(path: Path, parts: Iterable[np.ndarray], firsts: Sequence[int], chunk_rows: int, dtype: str) -> None:
    """One uncompressed Zarr v3 array in one shard file, of parts that begin at `firsts`; zeros fill what lies between.

    The last of `firsts` is the number of all rows. zarr writes the array's metadata. The shard file is written here, as
    zarr would hold all of it in memory several times: the chunks in order, then offset and length of each as uint64,
    then the crc32c of these (Zarr v3, `sharding_indexed`).
    """
    parts = iter(parts)
    part = next(parts)
    shape = (firsts[-1], *part.shape[1:])
    row_bytes = part[:1].nbytes
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
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()
