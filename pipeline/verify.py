"""Description of a cache: what made it, and how full it is."""

from collections import Counter
from pathlib import Path

from pipeline.ledger import Plan, failures_of
from unloc.cache.reading import completed, open_cache
from unloc.cache.remote import file_sizes
from unloc.files import url_of


def describe(path: Path | str) -> dict[str, dict]:
    """Fingerprint, versions and contents of a cache at a path or URL, in sections."""
    cache = open_cache(path)
    hours, decoders = 0.0, Counter()
    for row in cache.rows.values():
        hours += row["duration_seconds"] / 3600
        decoders[row["decoder"]] += 1
    waiting = sum(len(ids) for ids in Plan(cache.path).open_shards(cache).values())
    sizes = file_sizes(path)
    contents = {
        "videos cached": len(cache),
        "videos failed": len(failures_of(cache)),
        "videos planned, not written": waiting,
        "shards": len(cache.shards),
        "frame tokens": sum(cache.column("num_tokens", video_id) for video_id in cache.rows),
        "hours of video": round(hours, 3),
        "decoders": dict(decoders),
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
