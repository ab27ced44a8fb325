"""Caches of one fingerprint joined into one: token bytes are copied, nothing is encoded.

Like an extraction, a merge first gives every video a place in the plan and then writes whole shards, so that one that
was killed goes on where it stopped, and `unloc extract` can add to what it made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ledger import Failure, Plan, Staging, failures_of
from unloc.cache.audit import audit_cache
from unloc.cache.reading import Cache, open_cache
from unloc.cache.writing import (
    VideoTokens,
    create_or_check,
    fingerprint_differences,
    stored_video,
    write_checked,
    write_projections,
    write_text_shard,
    write_video_shard,
)
from unloc.errors import CacheError, FingerprintError, InputError
from unloc.files import folder_lock

TEXTS_PER_SHARD = 20_000


@dataclass(kw_only=True)
class MergeSummary:
    """What a merge added."""

    videos: int = 0
    there_before: int = 0
    failed: int = 0
    texts: int = 0


def merge(out: Path, sources: Sequence[Path], *, shard_size: int = 512) -> MergeSummary:
    """Bring the videos and texts of all sources into the cache `out`, made where it is not there.

    A video of several sources counts once, if its tokens are the same. Raises FingerprintError naming the keys that
    differ, CacheError for a damaged source and for a video whose tokens differ between sources.
    """
    if out.resolve() in [source.resolve() for source in sources]:
        raise InputError(f"{out}: is one of the caches to read; name the others only, they are added to it")
    caches = [_whole(source) for source in sources]
    _require_one_fingerprint([*caches, open_cache(out)] if (out / "zarr.json").is_file() else caches)
    create_or_check(out, caches[0].fingerprint, caches[0].versions)
    with folder_lock(out):
        _write_projections(out, caches)
        summary = MergeSummary()
        _require_same_tokens([open_cache(out), *caches])
        _write_videos(out, caches, summary, shard_size)
        _write_texts(out, caches, summary)
        _write_aliases(out, caches)
    return summary


def _whole(path: Path) -> Cache:
    damages = audit_cache(path).damages
    if damages:
        raise CacheError(
            f"{path}/{damages[0].place}: {damages[0].reason}; run `unloc cache verify --repair` on it first"
        )
    return open_cache(path)


def _require_one_fingerprint(caches: Sequence[Cache]) -> None:
    first = caches[0]
    for other in caches[1:]:
        names = (str(first.path), str(other.path))
        differing = fingerprint_differences(first.fingerprint, other.fingerprint, names=names)
        if differing:
            raise FingerprintError(f"caches of two towers or preprocessings cannot be one ({differing})")


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


def _write_videos(out: Path, caches: Sequence[Cache], summary: MergeSummary, shard_size: int) -> None:
    plan, there = Plan(out), open_cache(out)
    found = _Settled(caches)
    planned = {video_id for ids in plan.open_shards(there).values() for video_id in ids}
    known = planned | there.rows.keys() | there.aliases.keys()
    failed = [
        video_id for video_id in found.failed if video_id not in found.rows and video_id not in failures_of(there)
    ]
    summary.there_before = len(found.rows.keys() & (there.rows.keys() | there.aliases.keys()))
    plan.extend([video_id for video_id in (*found.rows, *failed) if video_id not in known], shard_size)
    staging = Staging(out)
    for name, ids in plan.open_shards(there).items():
        results = [found.result(video_id) or staging.get(video_id) for video_id in ids]
        if any(result is None for result in results):
            continue  # an extraction has planned this shard; it waits for that one's videos
        videos = [result for result in results if isinstance(result, VideoTokens)]
        rows = [result.to_row() for result in results if isinstance(result, Failure)]
        write_video_shard(out, name, videos, rows, there.dtype)
        staging.drop(ids)
        summary.videos += len(videos)
        summary.failed += len(rows)


class _Settled:
    """What became of each video in any of several caches; the first that has its tokens counts."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.rows: dict[str, Cache] = {}
        self.failed: dict[str, Failure] = {}
        for cache in caches:
            for video_id in cache.rows:
                self.rows.setdefault(video_id, cache)
            self.failed |= failures_of(cache)

    def result(self, video_id: str) -> VideoTokens | Failure | None:
        """Tokens of a video, or why there are none, or None where no cache has met it."""
        if video_id not in self.rows:
            return self.failed.get(video_id)
        return stored_video(self.rows[video_id], video_id)


def _write_texts(out: Path, caches: Sequence[Cache], summary: MergeSummary) -> None:
    there = open_cache(out)
    new = {text: cache for cache in caches for text in cache.text_names if not there.has_text(text)}
    for start in range(0, len(new), TEXTS_PER_SHARD):
        part = list(new)[start : start + TEXTS_PER_SHARD]
        write_text_shard(out, [(text, new[text].stored_text(text)) for text in part], there.dtype)
    summary.texts = len(new)


def _write_projections(out: Path, caches: Sequence[Cache]) -> None:
    """Of any source: one fingerprint names one tower."""
    found = next((cache.projections for cache in caches if cache.projections), None)
    if found and not open_cache(out).projections:
        write_projections(out, found)


def _write_aliases(out: Path, caches: Sequence[Cache]) -> None:
    there = open_cache(out)
    found = {alias: target for cache in caches for alias, target in cache.aliases.items()}
    new = {alias: target for alias, target in found.items() if alias not in there and target in there.rows}
    if new:
        write_checked(out / "aliases.json", there.aliases | new)
