"""Audit of a cache: every byte against the checksums that were written with it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unloc.cache import OnProgress
from unloc.cache.metadata import read_attributes, read_checked
from unloc.cache.reading import ROWS, Cache, ShardMap
from unloc.cache.writing import token_checksum
from unloc.errors import CacheError
from unloc.files import file_crc32c


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
    """Read every byte and compare; `on_progress` gets the shards done and all shards.

    Raises MissingError, or CacheError where not even the fingerprint can be read.
    """
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
