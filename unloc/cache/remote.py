"""Caches by path or URL, as the rest of unloc meets them: opened to read, held to write, copied to be audited."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unloc.cache.mirror import ExactCopy, Home, Mirror
from unloc.cache.object_store import ObjectStore
from unloc.cache.reading import Cache
from unloc.errors import MissingError
from unloc.files import url_of

logger = logging.getLogger(__name__)


class MirroredCache(Cache):
    """A remote cache: read through its mirror, to which tokens come when they are first read."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror.folder)
        self.url = mirror.url

    def fetch(self, name: str) -> Path:
        """A file or array that is to be read, after it came here."""
        Mirror(self.url, self.path).pull_files(name)
        return super().fetch(name)


def open_remote(url: str) -> Cache:
    """The remote cache at a URL. Raises MissingError where there is none."""
    mirror = Mirror(url)
    mirror.pull()
    if not (mirror.folder / "zarr.json").is_file():
        raise MissingError(f"cache {url} does not exist; `unloc extract … --cache {url}` makes it")
    logger.info("%s: its local copy is %s", url, mirror.folder)
    return MirroredCache(mirror)


def home_of(path: Path | str) -> Home:
    """Where the cache at a path or URL is written."""
    url = url_of(path)
    return Home(Path(path)) if url is None else Mirror(url)


@contextmanager
def writable(path: Path | str) -> Iterator[Path]:
    """The folder to write a cache in; of a remote one its mirror, held by a lease, and published in the end."""
    home = home_of(path)
    with home.lease():
        yield home.folder
        home.publish()


def local_copy(path: Path | str) -> Path:
    """A cache's folder, with every byte of it; of a remote one its mirror."""
    url = url_of(path)
    if url is None:
        return Path(path)
    mirror = Mirror(url)
    open_remote(url)
    for shard in mirror.local_shards():
        mirror.pull_files(shard)
    return mirror.folder


@contextmanager
def exact_copy(path: Path | str) -> Iterator[Home]:
    """A cache to audit and to mend; of a remote one all its objects, fetched now into a folder that goes in the end."""
    url = url_of(path)
    if url is None:
        yield Home(Path(path))
        return
    with tempfile.TemporaryDirectory(prefix="unloc-audit-") as folder:
        copy = ExactCopy(url, Path(folder) / "cache")
        copy.pull_everything()
        yield copy


def file_sizes(path: Path | str) -> dict[str, int]:
    """Bytes of every file or object of a cache, by its name in it."""
    url = url_of(path)
    if url is not None:
        return ObjectStore(url).sizes()
    files = (item for item in Path(path).rglob("*") if item.is_file())
    return {item.relative_to(path).as_posix(): item.stat().st_size for item in files}
