"""Bit-rot in a cache: every byte of it against the checksums that were written with it."""

import json
from dataclasses import dataclass
from pathlib import Path

from unloc.cache.reading import ROWS, open_cache, read_attributes, read_checked
from unloc.cache.shard_map import ShardMap
from unloc.cache.writing import token_checksum
from unloc.errors import CacheError
from unloc.files import file_crc32c


@dataclass(frozen=True)
class Damage:
    """One folder or file of a cache that is not what was written."""

    place: str
    """Relative to the cache: `shards/00003`, `texts/00000`, `shards/zarr.json`, `plan.json`."""
    reason: str
    broken: tuple[str, ...] = ()
    """Videos whose tokens or row are lost; where the shard's table is damaged they cannot be told."""


@dataclass(frozen=True)
class Audit:
    """What was read and what of it is damaged."""

    num_videos: int
    num_texts: int
    damages: tuple[Damage, ...]


def audit_cache(path: Path) -> Audit:
    """Read every byte of a cache and compare.

    Raises MissingError where there is no cache, CacheError where not even its fingerprint can be read.
    """
    open_cache(path)
    damages = [*_damaged_groups(path), *_damaged_notes(path)]
    num_texts, video_ids = 0, set()
    for folder in _shard_folders(path / "shards"):
        damage, ids = _audit_videos(folder)
        damages += damage
        video_ids |= set(ids)
    for folder in _shard_folders(path / "texts"):
        damage, count = _audit_texts(path, folder)
        damages += damage
        num_texts += count
    return Audit(len(video_ids), num_texts, tuple(damages))


def _shard_folders(folder: Path) -> list[Path]:
    return sorted(item for item in folder.glob("[0-9]*") if item.is_dir())


def _damaged_groups(path: Path) -> list[Damage]:
    damages = []
    for name in ("shards", "texts"):
        try:
            read_attributes(path / name)
        except CacheError:
            damages.append(Damage(f"{name}/zarr.json", "is not what was written"))
    return damages


def _damaged_notes(path: Path) -> list[Damage]:
    damages = []
    for name in ("aliases.json", "plan.json", "projections.json"):
        try:
            read_checked(path / name)
        except CacheError:
            damages.append(Damage(name, "is not what was written"))
    return damages


def _audit_videos(folder: Path) -> tuple[list[Damage], list[str]]:
    """Damage of one shard of videos, and the ids it holds."""
    place = f"shards/{folder.name}"
    try:
        videos = read_attributes(folder)["videos"]
    except (CacheError, KeyError):
        return [Damage(place, "its table is damaged: which videos it holds cannot be read")], []
    reason = damaged_files(folder)
    return [Damage(place, reason, tuple(lost_videos(folder)))] if reason else [], videos["video_id"]


def lost_videos(folder: Path) -> list[str]:
    """Videos of a shard with an intact table of which anything is not what was written."""
    stated = read_attributes(folder)
    ids, files = stated["videos"]["video_id"], stated["files"]
    rows = folder / ROWS
    if not rows.is_file() or file_crc32c(rows) != files.get(ROWS):
        return ids
    try:
        frames = ShardMap(folder / "frames")
    except CacheError:
        return ids
    with rows.open(encoding="utf-8") as handle:
        return [
            row["video_id"]
            for row in map(json.loads, handle)
            if token_checksum(frames.rows(row["first_row"], row["num_tokens"])) != row["tokens_sha256"]
        ]


def _audit_texts(path: Path, folder: Path) -> tuple[list[Damage], int]:
    """Damage of one shard of texts, and how many it holds."""
    place = f"texts/{folder.name}"
    try:
        num_texts = len(read_attributes(folder)["texts"])
    except (CacheError, KeyError):
        return [Damage(place, "its table is damaged: which texts it holds cannot be read")], 0
    reason = damaged_files(folder)
    return [Damage(place, reason)] if reason else [], num_texts


def damaged_files(folder: Path) -> str | None:
    """What is wrong with a shard's files against the checksums in its table; None where nothing is."""
    stated = read_attributes(folder)["files"]
    there = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()} - {"zarr.json"}
    for name in sorted(stated.keys() | there):
        if name not in there:
            return f"{name} is gone"
        if name not in stated:
            return f"{name} is not of this shard"
        if file_crc32c(folder / name) != stated[name]:
            return f"checksum of {name} differs"
    return None
