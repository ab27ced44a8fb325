"""Caches by path or URL: opened to read, locked to write, copied to audit, described.

A cache in a bucket has a local copy, the mirror, which is mapped and written. Tables are fetched when the cache is
opened, tokens when they are read. An object store has no rename: a shard counts once its
`zarr.json`, which is sent last, has arrived.
"""

import hashlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from unloc.cache.metadata import read_attributes, read_checked
from unloc.cache.object_store import ObjectStore
from unloc.cache.reading import Cache
from unloc.cache.shards import failures_of, open_shards
from unloc.cache.writing import create_or_check, fingerprint_differences, fingerprint_hash
from unloc.errors import CacheError, InputError, MissingError
from unloc.files import LOCK, file_crc32c, file_lock, folder_lock, remove_leftovers, url_of

logger = logging.getLogger(__name__)
FIRST = ("shards/zarr.json", "texts/zarr.json", "zarr.json", "projections.json", "plan.json", "aliases.json")
LAST = ("ledger.jsonl", "summary.json")


class Home:
    """Where the cache at a path or URL is written: its folder; for a remote one the mirror, published to its URL."""

    is_exact = False  # has it every object as it is at the URL, damaged or not? (`exact_copy`)

    def __init__(self, path: Path | str) -> None:
        """Raises InputError for a URL that cannot hold a cache."""
        self.url = url_of(path)
        self.folder = Path(path) if self.url is None else mirror_folder(self.url)
        if self.url is not None:
            self.store = ObjectStore(self.url)
            if "/" not in self.store.root:  # its sibling would be another bucket
                raise InputError(f"{self.url}: names no folder in a bucket; give one, such as s3://bucket/cache")
        self._sent: dict[str, str] = {}  # crc32c of every object that is known to be at the URL
        self._published: set[str] = set()  # shards that are at the URL whole

    def __str__(self) -> str:
        return self.url or str(self.folder)

    def _lock_file(self, name: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{name}")

    def pull(self) -> None:
        """Fetch fingerprint, tables and plan; not while a process of this machine writes: its mirror is newer."""
        if self.url is None:
            return
        with file_lock(self._lock_file("pull"), wait=True), file_lock(self._lock_file("write")) as is_free:
            if is_free:
                self._synchronise()

    def publish(self) -> None:
        """Send what is new, tables last. Raises CacheError where the store keeps failing; the next call continues."""
        if self.url is None:
            return
        new = [shard for shard in self.local_shards() if shard not in self._published]
        tables = [f"{shard}/zarr.json" for shard in new]
        files = [item for shard in new for item in sorted((self.folder / shard).rglob("*"))]
        tokens = [name for item in files if (name := item.relative_to(self.folder).as_posix()) not in tables]
        for name in (*FIRST, *tokens, *tables, *LAST):
            file = self.folder / name
            if file.is_file() and self._sent.get(name) != (checksum := file_crc32c(file)):
                self.store.send(file, name)
                self._sent[name] = checksum
        self._published |= {*new}
        for name in [name for name in self._sent if self.is_exact and not (self.folder / name).is_file()]:
            self.store.remove(name)  # a repair has removed it
            del self._sent[name]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the URL for writing and update the mirror (the folder has a lock of its own). Raises CacheError."""
        with ExitStack() as stack:
            if self.url is None:
                yield
                return
            with file_lock(self._lock_file("pull"), wait=True):  # a reader that pulls has the lock for a moment
                is_free = stack.enter_context(file_lock(self._lock_file("write")))
            if not is_free:
                raise CacheError(f"{self.url}: another process on this machine is writing this cache; wait for it")
            pid = os.getpid()
            mine = {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid), "token": uuid.uuid4().hex}
            for attempt in range(2):
                owner = self.store.create(LOCK, mine)
                if owner == mine:
                    break
                is_gone = owner.get("host") == mine["host"] and _start_of(owner.get("pid")) != owner.get("started")
                if attempt or (owner and not is_gone):
                    process = f"process {owner.get('pid')} on {owner.get('host')}"
                    raise CacheError(f"{self.url}/{LOCK}: {process} is writing this cache; wait, or remove that object")
                self.store.remove(LOCK)
            try:
                self._synchronise()
                yield
            finally:
                self.store.remove(LOCK)

    def _synchronise(self) -> None:
        if self.is_exact:
            return
        remote = {name: info["size"] for name, info in self.store.infos().items()}
        root = self.folder / "zarr.json"
        if "zarr.json" not in remote or (root.is_file() and root.read_bytes() != self.store.read("zarr.json")):
            shutil.rmtree(self.folder, ignore_errors=True)  # of a cache that is no longer at the URL
        if "zarr.json" not in remote:
            return
        planned_here, ledger = read_checked(self.folder / "plan.json"), self.folder / "ledger.jsonl"
        for name in (*FIRST, *LAST):
            is_newer_here = name == ledger.name and ledger.is_file() and ledger.stat().st_size > remote.get(name, 0)
            if name in remote and not is_newer_here:
                self.store.fetch(name, self.folder / name)
                self._sent[name] = file_crc32c(self.folder / name)
        plan = read_checked(self.folder / "plan.json")
        tables = {name.removesuffix("/zarr.json") for name in remote if name.count("/") == 2 and "zarr.json" in name}
        for shard in tables:
            raw, local = self.store.read(f"{shard}/zarr.json"), self.folder / shard / "zarr.json"
            if not local.is_file() or local.read_bytes() != raw:  # tokens here belong to another table
                shutil.rmtree(local.parent, ignore_errors=True)
                self.store.fetch(f"{shard}/zarr.json", local)
            self._published.add(shard)
        for shard in self.local_shards():  # one that is here only is ours to publish if both plans have it
            kind, _, name = shard.partition("/")
            if shard not in tables and (kind == "texts" or plan.get(name) != planned_here.get(name, [])):
                shutil.rmtree(self.folder / shard)

    def local_shards(self) -> list[str]:
        """Shards whose table is here, `shards/00000` …, `texts/00000` …"""
        tables = (file for kind in ("shards", "texts") for file in sorted(self.folder.glob(f"{kind}/[0-9]*/zarr.json")))
        return [file.parent.relative_to(self.folder).as_posix() for file in tables]


def mirror_folder(url: str) -> Path:
    """Where the mirror of a remote cache is: below $UNLOC_MIRRORS, else ~/.cache/unloc/mirrors."""
    home = Path(os.environ.get("UNLOC_MIRRORS") or Path.home() / ".cache" / "unloc" / "mirrors")
    return home / hashlib.sha256(url.encode()).hexdigest()[:12] / url.rpartition("/")[2]


def _start_of(pid: int | None) -> str | None:
    """When a process started, which tells it from a later one with the same id; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None


def open_cache(path: Path | str) -> Cache:
    """The cache at a path or URL, whose tokens are downloaded when read. Raises MissingError; CacheError: damaged."""
    home = Home(path)
    if home.url is None:
        return Cache(home.folder)
    home.pull()
    if not (home.folder / "zarr.json").is_file():
        raise MissingError(f"cache {home} does not exist; `unloc extract … --cache {home}` makes it")
    logger.info("%s: its local copy is %s", home, home.folder)
    return Cache(home.folder, partial(_download, home.url))


def _download(url: str, place: str) -> None:
    """Fetch a file, an array or a shard (`shards/00003`) where it is not here yet. Raises CacheError for damage."""
    home, shard = Home(url), "/".join(place.split("/")[:2])  # made anew: after a fork stores' clients do not work
    for name, checksum in read_attributes(home.folder / shard)["files"].items():
        file = f"{shard}/{name}"
        if f"{file}/".startswith(f"{place}/") and not (home.folder / file).is_file():
            home.store.fetch(file, home.folder / file, checksum)


def home_for(path: Path | str, fingerprint: dict) -> Home:
    """Where the cache at a path or URL is written; where that has another fingerprint, its sibling for this one."""
    home = Home(path)
    home.pull()
    cached = Cache(home.folder).fingerprint if (home.folder / "zarr.json").is_file() else fingerprint
    if not (differing := fingerprint_differences(cached, fingerprint, names=("cache", "now"))):
        return home
    sibling = Home(f"{home}-{fingerprint_hash(fingerprint)}")
    logger.warning("%s: was made with other settings (%s); a new cache is at %s", home, differing, sibling)
    return sibling


@contextmanager
def open_for_writing(home: Home, fingerprint: dict, versions: dict) -> Iterator[Cache]:
    """Lock a cache, create it if need be, publish it at the end. Raises CacheError (locked) and FingerprintError."""
    with home.lock(), folder_lock(home.folder):
        remove_leftovers(home.folder)
        create_or_check(home.folder, fingerprint, versions)
        home.publish()
        try:
            yield Cache(home.folder)
        except OSError:
            remove_leftovers(home.folder)  # half-written files may be what fills the disk
            raise
        home.publish()


@contextmanager
def exact_copy(path: Path | str) -> Iterator[Home]:
    """A cache to audit and repair; of a remote one all its objects, downloaded. Raises MissingError at a wrong URL."""
    home = Home(path)
    if home.url is None:
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="unloc-audit-") as folder:
        home.folder, home.is_exact = Path(folder) / "cache", True
        names = home.store.infos().keys() - {LOCK}
        if "zarr.json" not in names:
            raise MissingError(f"cache {home.url} does not exist")
        for name in names:
            home.store.fetch(name, home.folder / name)
            home._sent[name] = file_crc32c(home.folder / name)
        yield home


def describe(path: Path | str) -> dict[str, dict]:
    """Fingerprint, versions, contents and failures of a cache at a path or URL."""
    cache, home = open_cache(path), Home(path)
    local = [item.stat().st_size for item in cache.path.rglob("*") if item.is_file()]
    sizes = [info["size"] for info in home.store.infos().values()] if home.url else local
    failures = failures_of(cache)
    contents = {
        "videos cached": len(cache),
        "videos failed": len(failures),
        "videos planned, not written": sum(map(len, open_shards(cache).values())),
        "shards": len(cache.tables),
        "frame tokens": sum(cache.column("num_tokens", video_id) for video_id in cache.places),
        "hours of video": round(sum(cache.column("duration_seconds", name) for name in cache.places) / 3600, 3),
        "decoders": dict(Counter(cache.row(name)["decoder"] for name in cache.places)),
        "texts": len(cache.text_index),
        "files": len(sizes),
        "megabytes": round(sum(sizes) / 1e6, 2),
    }
    contents |= {"note": cache.note} if cache.note else {}
    if home.url:
        contents |= {"local copy": str(cache.path), "megabytes of the local copy": round(sum(local) / 1e6, 2)}
    reasons = dict(Counter(failure.reason for failure in failures.values()))
    return {"fingerprint": cache.fingerprint, "versions": cache.versions, "contents": contents, "failures": reasons}
