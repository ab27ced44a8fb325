"""Audit of a cache: what made it, how full it is, and whether its bytes are those that were written."""

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.ledger import Plan, failures_of
from unloc.data.cache import completed, open_cache, url_of
from unloc.data.cache_writer import token_checksum
from unloc.data.remote import file_sizes
from unloc.errors import CacheError


def describe(path: Path | str) -> dict[str, dict]:
    """Fingerprint, versions and contents of a cache at a path or URL, in sections."""
    cache = open_cache(path)
    rows = list(cache.rows.values())
    waiting = sum(len(ids) for ids in Plan(cache.path).open_shards(cache).values())
    sizes = file_sizes(path)
    contents = {
        "videos cached": len(rows),
        "videos failed": len(failures_of(cache)),
        "videos planned, not written": waiting,
        "shards": len(cache.tables),
        "frame tokens": sum(row["num_tokens"] for row in rows),
        "hours of video": round(sum(row["duration_seconds"] for row in rows) / 3600, 3),
        "decoders": dict(Counter(row["decoder"] for row in rows)),
        "texts": cache.num_texts,
        "files": len(sizes),
        "megabytes": round(sum(sizes.values()) / 1e6, 2),
    }
    if cache.note:
        contents["note"] = cache.note
    if url_of(path):
        contents["local copy"] = str(cache.path)
        contents["megabytes of the local copy"] = round(sum(file_sizes(cache.path).values()) / 1e6, 2)
    failed = dict(Counter(failure.reason for failure in failures_of(cache).values()))
    fingerprint = completed(cache.fingerprint)
    return {"fingerprint": fingerprint, "versions": cache.versions, "contents": contents, "failures": failed}


def broken_videos(path: Path) -> tuple[dict[str, str], int]:
    """Videos whose tokens are not those that were written, with the reason, and how many were checked."""
    cache = open_cache(path)
    broken = {}
    for video_id, row in cache.rows.items():
        try:
            tokens = np.moveaxis(cache[video_id].frames, 0, 1)
        except CacheError as error:
            broken[video_id] = str(error)
            continue
        if token_checksum(tokens) != row["tokens_sha256"]:
            broken[video_id] = f"checksum of its tokens differs (shard {row['shard']})"
    return broken, len(cache.rows)
