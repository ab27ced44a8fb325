"""Caches by path or URL: opened to read, locked to write, copied to audit, described."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unloc.cache.mirror import ExactCopy, Home, Mirror
from unloc.cache.reading import Cache
from unloc.cache.shards import failures_of, open_shards
from unloc.cache.writing import create_or_check, fingerprint_differences, fingerprint_hash
from unloc.errors import MissingError
from unloc.files import folder_lock, remove_leftovers, url_of

logger = logging.getLogger(__name__)


class RemoteCache(Cache):
    """A remote cache: read from its mirror, to which tokens are downloaded when they are first read."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror.folder)
        self.url = mirror.url

    def fetch(self, name: str) -> Path:
        """The path of a file or array that is about to be read, after it was downloaded."""
        Mirror(self.url, self.path).pull_files(name)
        return super().fetch(name)


def open_cache(path: Path | str) -> Cache:
    """The cache at a path or URL. Raises MissingError, or CacheError where it is of another format or damaged."""
    url = url_of(path)
    if url is None:
        return Cache(Path(path))
    mirror = Mirror(url)
    mirror.pull()
    if not (mirror.folder / "zarr.json").is_file():
        raise MissingError(f"cache {url} does not exist; `unloc extract … --cache {url}` makes it")
    logger.info("%s: its local copy is %s", url, mirror.folder)
    return RemoteCache(mirror)


def home_of(path: Path | str) -> Home:
    """Where the cache at a path or URL is written."""
    url = url_of(path)
    return Home(Path(path)) if url is None else Mirror(url)


def home_for(path: Path | str, fingerprint: dict) -> Home:
    """Where the cache at a path or URL is written; where that has another fingerprint, its sibling for this one."""
    home = home_of(path)
    home.pull()
    cached = Cache(home.folder).fingerprint if (home.folder / "zarr.json").is_file() else fingerprint
    if not (differing := fingerprint_differences(cached, fingerprint, names=("cache", "now"))):
        return home
    sibling = home_of(f"{home}-{fingerprint_hash(fingerprint)}")
    logger.warning("%s: was made otherwise (%s); a new cache is at %s", home, differing, sibling)
    return sibling


@contextmanager
def open_for_writing(home: Home, fingerprint: dict, versions: dict) -> Iterator[Home]:
    """Lock a cache, create it if need be, publish it at the end. Raises CacheError (locked) and FingerprintError."""
    with home.lock(), folder_lock(home.folder):
        remove_leftovers(home.folder)
        create_or_check(home.folder, fingerprint, versions)
        home.publish()
        try:
            yield home
        except OSError:
            remove_leftovers(home.folder)  # half-written files may be what fills the disk
            raise
        home.publish()


def local_copy(path: Path | str) -> Path:
    """A cache's folder with every byte of it; of a remote one its mirror."""
    url = url_of(path)
    if url is None:
        return Path(path)
    open_cache(url)
    mirror = Mirror(url)
    for shard in mirror.local_shards():
        mirror.pull_files(shard)
    return mirror.folder


@contextmanager
def exact_copy(path: Path | str) -> Iterator[Home]:
    """A cache to audit and repair; of a remote one all its objects, downloaded. Raises MissingError at a wrong URL."""
    url = url_of(path)
    if url is None:
        yield Home(Path(path))
        return
    with tempfile.TemporaryDirectory(prefix="unloc-audit-") as folder:
        copy = ExactCopy(url, Path(folder) / "cache")
        copy.pull()
        yield copy


def describe(path: Path | str) -> dict[str, dict]:
    """Fingerprint, versions, contents and failures of a cache at a path or URL."""
    cache, url = open_cache(path), url_of(path)
    decoders = Counter(row["decoder"] for row in cache.rows.values())
    local = [item.stat().st_size for item in cache.path.rglob("*") if item.is_file()]
    sizes = [info["size"] for info in Mirror(url).store.infos().values()] if url else local
    failures = failures_of(cache)
    contents = {
        "videos cached": len(cache),
        "videos failed": len(failures),
        "videos planned, not written": sum(map(len, open_shards(cache).values())),
        "shards": len(cache.table.shards),
        "frame tokens": sum(cache.column("num_tokens", video_id) for video_id in cache.rows),
        "hours of video": round(sum(cache.column("duration_seconds", name) for name in cache.rows) / 3600, 3),
        "decoders": dict(decoders),
        "texts": len(cache.text_index),
        "files": len(sizes),
        "megabytes": round(sum(sizes) / 1e6, 2),
    }
    if cache.note:
        contents["note"] = cache.note
    if url:
        contents |= {"local copy": str(cache.path), "megabytes of the local copy": round(sum(local) / 1e6, 2)}
    reasons = dict(Counter(failure.reason for failure in failures.values()))
    return {"fingerprint": cache.fingerprint, "versions": cache.versions, "contents": contents, "failures": reasons}
