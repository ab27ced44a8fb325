"""Caches of one fingerprint joined into one: token bytes are copied, nothing is encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unloc.cache.audit import audit_cache
from unloc.cache.metadata import write_checked
from unloc.cache.opening import home_of, local_copy, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import ShardWriter, failures_of
from unloc.cache.writing import fingerprint_differences, stored_video, write_projections, write_texts
from unloc.errors import CacheError, FingerprintError, InputError


@dataclass(kw_only=True)
class MergeSummary:
    """What a merge added."""

    videos: int = 0
    cached_before: int = 0
    failed: int = 0
    texts: int = 0


def merge(out: Path | str, sources: Sequence[Path | str], *, shard_size: int = 512) -> MergeSummary:
    """Copy the videos and texts of all sources into the cache `out`, made if need be; paths or URLs.

    A video of several sources counts once, if its tokens are the same. Raises FingerprintError naming the keys that
    differ, CacheError for a damaged source and for a video whose tokens differ between sources.
    """
    home = home_of(out)
    home.pull()
    folders = [local_copy(source) for source in sources]
    if home.folder.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"{out}: is one of the caches to read; name only the others, they are added to it")
    for folder in folders:
        for damage in audit_cache(folder).damages:
            message = f"{folder}/{damage.place}: {damage.reason}"
            raise CacheError(f"{message}; run `unloc cache verify --repair` on it first")
    caches = [Cache(folder) for folder in folders]
    first, *others = [*caches, Cache(home.folder)] if (home.folder / "zarr.json").is_file() else caches
    for other in others:
        differing = fingerprint_differences(
            first.fingerprint, other.fingerprint, names=(str(first.path), str(other.path))
        )
        if differing:
            raise FingerprintError(f"caches of different towers or preprocessing cannot be merged ({differing})")
    with open_for_writing(home, first.fingerprint, first.versions):
        target = Cache(home.folder)
        _require_same_tokens([target, *caches])
        summary = _copy_videos(target, caches, shard_size)
        texts = {text: cache for cache in caches for text in cache.text_index if text not in target.text_index}
        summary.texts = write_texts(
            target.path, ((text, cache.stored_text(text)) for text, cache in texts.items()), target.dtype
        )
        projections = next((cache.projections for cache in caches if cache.projections), None)
        if projections and not target.projections:
            write_projections(target.path, projections)
        _copy_aliases(Cache(home.folder), caches)
    return summary


def _require_same_tokens(caches: Sequence[Cache]) -> None:
    found: dict[str, tuple[str, Path]] = {}
    for cache in caches:
        for video_id, row in cache.rows.items():
            checksum, where = found.setdefault(video_id, (row["tokens_sha256"], cache.path))
            if checksum != row["tokens_sha256"]:
                raise CacheError(
                    f"video {video_id!r}: {where} and {cache.path} hold different tokens of it (other files under one "
                    "id, or machines that round differently); remove it from one of them"
                )


def _copy_videos(target: Cache, caches: Sequence[Cache], shard_size: int) -> MergeSummary:
    """The first cache that has a video's tokens counts; a failure counts where none has them."""
    cached: dict[str, Cache] = {}
    for cache in caches:
        cached |= {video_id: cache for video_id in cache.rows if video_id not in cached}
    failed = {video_id: failure for cache in caches for video_id, failure in failures_of(cache).items()}
    writer, failed_before = ShardWriter(target), failures_of(target)
    known = {*writer.planned, *target.rows, *target.aliases}
    new_failures = [video_id for video_id in failed if video_id not in cached and video_id not in failed_before]
    writer.add([video_id for video_id in (*cached, *new_failures) if video_id not in known], shard_size)
    summary = MergeSummary(cached_before=sum(video_id in target for video_id in cached))
    for name, ids in list(writer.open.items()):
        if any(video_id not in cached and video_id not in failed for video_id in writer.missing[name]):
            continue  # planned by an extraction, which has to finish it
        for video_id in ids:
            is_cached = video_id in cached
            if video_id in writer.missing[name]:
                writer.put(stored_video(cached[video_id], video_id) if is_cached else failed[video_id])
            summary.videos += is_cached
            summary.failed += not is_cached
        writer.write(name)
    return summary


def _copy_aliases(target: Cache, caches: Sequence[Cache]) -> None:
    found = {alias: own for cache in caches for alias, own in cache.aliases.items()}
    new = {alias: own for alias, own in found.items() if alias not in target and own in target.rows}
    if new:
        write_checked(target.path / "aliases.json", target.aliases | new)
