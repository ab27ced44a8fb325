"""Caches of one fingerprint joined into one: token bytes are copied, nothing is encoded."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unloc.cache.metadata import write_checked
from unloc.cache.opening import Home, open_cache, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Added, ShardWriter, failures_of
from unloc.cache.writing import audit_cache, fingerprint_differences, stored_video, write_projections, write_texts
from unloc.callbacks import OnProgress
from unloc.errors import CacheError, FingerprintError, InputError


def merge(
    out: Path | str,
    sources: Sequence[Path | str],
    *,
    shard_size: int = 512,
    on_progress: OnProgress = lambda done, total: None,
) -> Added:
    """Copy the videos and texts of all sources into the cache `out`, made if need be; a video counts once. Raises
    FingerprintError naming the keys that differ, CacheError for a damaged source and for tokens that differ.
    """
    home, caches = Home(out), [open_cache(source) for source in sources]
    if home.folder.resolve() in [cache.path.resolve() for cache in caches]:
        raise InputError(f"{out}: is one of the caches to read; name only the others, they are added to it")
    first = caches[0]
    for cache in caches:
        for place in {f"shards/{name}" for name in cache.tables} | {place for place, *_ in cache.text_index.values()}:
            cache.fetch(place)
        for damage in audit_cache(cache.path).damages:
            place = f"{cache.path}/{damage.place}"
            raise CacheError(f"{place}: {damage.reason}; run `unloc cache verify --repair` on it first")
        names = (str(first.path), str(cache.path))
        if differing := fingerprint_differences(first.fingerprint, cache.fingerprint, names=names):
            raise FingerprintError(f"caches of different towers or preprocessing cannot be merged ({differing})")
    with open_for_writing(home, first.fingerprint, first.versions) as target:
        found = {}
        for cache in (*caches, target):
            for video_id in cache.places:
                other = found.setdefault(video_id, cache)
                row = cache.row(video_id)
                if other is not cache and other.row(video_id)["tokens_sha256"] != row["tokens_sha256"]:
                    problem = f"{other.path} and {cache.path} hold different tokens of it"
                    advice = "of other files, or of machines that round differently: keep it in one of them"
                    raise CacheError(f"video {video_id!r}: {problem}, {advice}")
        videos = {name: partial(stored_video, cache, name) for name, cache in found.items() if cache is not target}
        failed = {name: one for cache in caches for name, one in failures_of(cache).items() if name not in videos}
        failed_before = failures_of(target)
        new = [*videos, *(video_id for video_id in failed if video_id not in failed_before)]
        results = videos | {name: lambda failure=failure: failure for name, failure in failed.items()}
        added = ShardWriter(target).fill(new, results, shard_size, on_progress)
        added.cached_before = sum(video_id in target for video_id in videos)
        texts = {text: cache for cache in caches for text in cache.text_index if text not in target.text_index}
        tokens = ((text, cache.stored_text(text)) for text, cache in texts.items())
        added.texts = write_texts(target.path, tokens, target.dtype)
        projections = next((cache.projections for cache in caches if cache.projections), None)
        if projections and not target.projections:
            write_projections(target.path, projections)
        target = Cache(home.folder)
        aliases = {alias: own for cache in caches for alias, own in cache.aliases.items()}
        new = {alias: own for alias, own in aliases.items() if alias not in target and own in target.places}
        if new:
            write_checked(target.path / "aliases.json", target.aliases | new)
    return added
