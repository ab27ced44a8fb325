"""Several ids for one file (`v_<id>` and `<id>`, a row that two datasets share): it is decoded once."""

from pathlib import Path

from unloc.data.cache import Cache, open_cache
from unloc.data.cache_writer import write_checked
from unloc.data.tar_shards import VideoFile
from unloc.inference.reading import file_hash, file_identity


def split_by_file(files: dict[str, VideoFile]) -> tuple[dict[str, VideoFile], dict[str, str]]:
    """(first id of each file with the file, every later id with that first one)."""
    first: dict[VideoFile, str] = {}
    for video_id, path in files.items():
        first.setdefault(path, video_id)
    same = {video_id: first[path] for video_id, path in files.items() if first[path] != video_id}
    return {video_id: path for path, video_id in first.items()}, same


def add_aliases(path: Path, files: dict[str, VideoFile]) -> Cache:
    """Note every id whose file is that of a cached video as another name of it; the cache as it then is."""
    cache = open_cache(path)
    known = {(row["file_bytes"], row["file_mtime_ns"], row["file"]): row for row in cache.rows.values()}
    new = {}
    for video_id, file in files.items():
        if video_id in cache:
            continue
        row = known.get((*file_identity(file).values(), file.name))
        if row is not None and file_hash(file) == row["content_sha256"]:
            new[video_id] = row["video_id"]
    return _with_aliases(cache, new)


def share_tokens(path: Path, same: dict[str, str]) -> Cache:
    """Note every id as another name of the id that has its file now, where that one is cached; the cache then."""
    cache = open_cache(path)
    rows = {first: first if first in cache.rows else cache.aliases.get(first) for first in same.values()}
    wanted = {video_id: rows[first] for video_id, first in same.items() if video_id not in cache and first in cache}
    return _with_aliases(cache, wanted)


def _with_aliases(cache: Cache, new: dict[str, str]) -> Cache:
    if not new:
        return cache
    write_checked(cache.path / "aliases.json", cache.aliases | new)
    return open_cache(cache.path)
