"""Writing a cache: a new one with its fingerprint, shards of videos, shards of texts; each appears in one rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from unloc.data.cache import FORMAT, SHARD_NAME, open_cache
from unloc.errors import CacheError, FingerprintError

CHUNK_ROWS = 32  # rows per chunk where videos differ in length; a video begins on a chunk
DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class VideoTokens:
    """What one video adds to a shard."""

    meta: dict
    """Its row: video_id, times_seconds, sha256, …"""
    tokens: np.ndarray
    """(T, views, D)."""


def create_or_check(path: Path, fingerprint: dict, versions: dict) -> None:
    """Create the cache, or make sure that the one there has this fingerprint.

    Raises FingerprintError naming each key that differs, CacheError where the folder holds something else.
    """
    if (path / "zarr.json").is_file():
        there = open_cache(path).fingerprint
        differing = [key for key in sorted(there.keys() | fingerprint.keys()) if there.get(key) != fingerprint.get(key)]
        if differing:
            shown = "; ".join(f"{key}: cache {there.get(key)!r}, now {fingerprint.get(key)!r}" for key in differing)
            raise FingerprintError(
                f"{path}: was made otherwise ({shown}); extract with the same settings or into a new cache, "
                f"for example --cache {path}-{fingerprint_hash(fingerprint)[:8]}"
            )
        return
    if path.exists() and any(path.iterdir()):
        raise CacheError(f"{path}: is neither empty nor a cache; give a new folder")
    path.mkdir(parents=True, exist_ok=True)
    attributes = {"unloc_cache": FORMAT, "fingerprint": fingerprint, "versions": versions}
    for name in ("shards", "texts"):
        (path / name).mkdir(exist_ok=True)
        write_atomically(path / name / "zarr.json", _group_metadata({}))
    write_atomically(path / "zarr.json", _group_metadata(attributes))


def fingerprint_hash(fingerprint: dict) -> str:
    """sha256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _group_metadata(attributes: dict) -> str:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1, ensure_ascii=False)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, flush it to disk, rename it."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def write_video_shard(path: Path, name: str, videos: Sequence[VideoTokens], failed: Sequence[dict], dtype: str) -> None:
    """Write a shard of videos (in this order) and the rows of those that failed; it appears whole or not at all."""
    lengths = [len(video.tokens) for video in videos]
    chunk = lengths[0] if lengths and len(set(lengths)) == 1 else CHUNK_ROWS
    rows, firsts = 0, []
    for length in lengths:
        firsts.append(rows)
        rows += -(-length // chunk) * chunk
    table = []
    folder = _fresh(path / "shards" / f".{name}.part")
    if videos:
        data = np.zeros((rows, *videos[0].tokens.shape[1:]), dtype=DTYPES[dtype])
        for first, video in zip(firsts, videos, strict=True):
            data[first : first + len(video.tokens)] = video.tokens
            table.append(video.meta | {"first_row": first, "num_tokens": len(video.tokens)})
        write_array(folder / "frames", data, chunk)
    (folder / "zarr.json").write_text(_group_metadata({"videos": table, "failed": list(failed)}), encoding="utf-8")
    folder.rename(path / "shards" / name)


def write_text_shard(path: Path, texts: Sequence[tuple[str, np.ndarray]], dtype: str) -> None:
    """Write a shard of texts: (text, (K, D) tokens)."""
    existing = [int(item.name) for item in (path / "texts").glob("[0-9]*")]
    name = SHARD_NAME.format(max(existing, default=-1) + 1)
    folder = _fresh(path / "texts" / f".{name}.part")
    table, row = [], 0
    for text, tokens in texts:
        table.append([text, row, len(tokens)])
        row += len(tokens)
    data = np.zeros((-(-row // CHUNK_ROWS) * CHUNK_ROWS, texts[0][1].shape[1]), dtype=DTYPES[dtype])
    data[:row] = np.concatenate([tokens for _, tokens in texts])
    write_array(folder / "tokens", data, CHUNK_ROWS)
    (folder / "zarr.json").write_text(_group_metadata({"texts": table}), encoding="utf-8")
    folder.rename(path / "texts" / name)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)  # a rest of a killed run
    folder.mkdir(parents=True)
    return folder


def write_array(path: Path, data: np.ndarray, chunk_rows: int) -> None:
    """One uncompressed Zarr v3 array in one shard file, chunks in order."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            store=str(path),
            shape=data.shape,
            dtype=data.dtype,
            chunks=(chunk_rows, *data.shape[1:]),
            shards=data.shape,
            compressors=None,
            filters=None,
        )
        array[...] = data


def token_checksum(tokens: np.ndarray) -> str:
    """sha256 of a video's token bytes as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()
