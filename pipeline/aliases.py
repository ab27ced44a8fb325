"""Several ids for one file (`v_<id>` and `<id>`, a row that two datasets share): it is decoded once."""

import logging
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from unloc.cache.metadata import read_checked, write_checked
from unloc.cache.reading import Cache
from unloc.video.video_file import VideoFile, file_hash, file_identity

logger = logging.getLogger(__name__)


def split_by_file(
    files: dict[str, VideoFile], own: Collection[str] = ()
) -> tuple[dict[str, VideoFile], dict[str, str]]:
    """(one id of each file with the file, every other id with that one); ids with tokens of their own keep the file."""
    first: dict[VideoFile, str] = {}
    for video_id in sorted(files, key=lambda video_id: video_id not in own):
        first.setdefault(files[video_id], video_id)
    unique = {video_id: file for video_id, file in files.items() if first[file] == video_id or video_id in own}
    return unique, {video_id: first[file] for video_id, file in files.items() if video_id not in unique}


def drop_aliases(path: Path, replaced: Collection[str], same: dict[str, str]) -> None:
    """Remove the other ids of videos that are replaced now, except those that still have the same file."""
    aliases = read_checked(path / "aliases.json")
    dropped = [alias for alias, own in aliases.items() if own in replaced and same.get(alias) != own]
    if dropped:
        logger.warning("no longer the file of another id, to be extracted again: %s", ", ".join(dropped))
        write_checked(path / "aliases.json", {alias: own for alias, own in aliases.items() if alias not in dropped})


def add_aliases(path: Path, files: dict[str, VideoFile], same: dict[str, str]) -> Cache:
    """Record every id whose file is that of a cached video as another id of it; returns the cache with them.

    `files` and `same` are those of `split_by_file`.
    """
    cache, new = Cache(path), {}
    unknown = [video_id for video_id in files if video_id not in cache]
    known: dict[tuple[int, int], list[str]] = defaultdict(list)
    for video_id in cache.rows if unknown else ():
        known[cache.column("file_bytes", video_id), cache.column("file_mtime_ns", video_id)].append(video_id)
    for video_id in unknown:
        file = files[video_id]
        rows = (cache.rows[other] for other in known.get(tuple(file_identity(file).values()), ()))
        row = next((row for row in rows if row["file"] == file.name), None)
        if row is not None and file_hash(file) == row["content_sha256"]:
            new[video_id] = row["video_id"]
    for video_id, first in same.items():
        own = cache.own_id(new.get(first, first))
        if video_id not in cache and own is not None:
            new[video_id] = own
    if not new:
        return cache
    write_checked(path / "aliases.json", cache.aliases | new)
    return Cache(path)
