"""Caches of one fingerprint joined into one: token bytes are copied, nothing is encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unloc.cache.audit import audit_cache
from unloc.cache.metadata import write_checked
from unloc.cache.opening import home_of, local_copy, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, Result, ShardWriter, failures_of
from unloc.cache.writing import VideoTokens, fingerprint_differences, stored_video, write_projections, write_texts
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
    home, folders = home_of(out), [local_copy(source) for source in sources]
    if home.folder.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"{out}: is one of the caches to read; name only the others, they are added to it")
    for folder in folders:
        for damage in audit_cache(folder).damages:
            message = f"{folder}/{damage.place}: {damage.reason}"
            raise CacheError(f"{message}; run `unloc cache verify --repair` on it first")
    first, *others = caches = [Cache(folder) for folder in folders]
    for other in others:
        names = (str(first.path), str(other.path))
        if differing := fingerprint_differences(first.fingerprint, other.fingerprint, names=names):
            raise FingerprintError(f"caches of different towers or preprocessing cannot be merged ({differing})")
    with open_for_writing(home, first.fingerprint, first.versions):
        target = Cache(home.folder)
        summary = _copy_videos(target, caches, shard_size)
        texts = {text: cache for cache in caches for text in cache.text_index if text not in target.text_index}
        tokens = ((text, cache.stored_text(text)) for text, cache in texts.items())
        summary.texts = write_texts(target.path, tokens, target.dtype)
        projections = next((cache.projections for cache in caches if cache.projections), None)
        if projections and not target.projections:
            write_projections(target.path, projections)
        target = Cache(home.folder)
        aliases = {alias: own for cache in caches for alias, own in cache.aliases.items()}
        new = {alias: own for alias, own in aliases.items() if alias not in target and own in target.rows}
        if new:
            write_checked(target.path / "aliases.json", target.aliases | new)
    return summary


def _copy_videos(target: Cache, caches: Sequence[Cache], shard_size: int) -> MergeSummary:
    """The first cache that has a video's tokens counts; a failure counts where none has them."""
    found: dict[str, Cache] = {}
    for cache in (*caches, target):
        for video_id, row in cache.rows.items():
            other = found.setdefault(video_id, cache)
            if other is not cache and other.rows[video_id]["tokens_sha256"] != row["tokens_sha256"]:
                raise CacheError(
                    f"video {video_id!r}: {other.path} and {cache.path} hold different tokens of it (other files under "
                    "one id, or machines that round differently); remove it from one of them"
                )
    cached = {video_id: cache for video_id, cache in found.items() if cache is not target}
    failed = {video_id: failure for cache in caches for video_id, failure in failures_of(cache).items()}
    writer, failed_before = ShardWriter(target), failures_of(target)
    known = {*writer.planned, *target.rows, *target.aliases}
    new_failures = [video_id for video_id in failed if video_id not in cached and video_id not in failed_before]
    writer.add([video_id for video_id in (*cached, *new_failures) if video_id not in known], shard_size)
    summary = MergeSummary(cached_before=sum(video_id in target for video_id in cached))

    def result_of(video_id: str) -> Result:
        return stored_video(cached[video_id], video_id) if video_id in cached else failed[video_id]

    for result in writer.fill(cached.keys() | failed.keys(), result_of):
        summary.videos += isinstance(result, VideoTokens)
        summary.failed += isinstance(result, Failure)
    return summary
