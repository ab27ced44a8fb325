"""A cache in a bucket and its local copy, the mirror, which is what is mapped and written.

Tables are fetched when the cache is opened, a shard's tokens when the first of its videos is read. An object store has
no rename: a shard is there once its `zarr.json` is, which is sent last. What is fetched is compared with its checksum.
"""

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unloc.cache.metadata import read_attributes, read_checked
from unloc.cache.object_store import ObjectStore
from unloc.errors import CacheError, InputError, MissingError
from unloc.files import LOCK, file_crc32c, file_lock

FIRST = ("shards/zarr.json", "texts/zarr.json", "zarr.json", "projections.json", "plan.json", "aliases.json")
LAST = ("ledger.jsonl", "summary.json")


class Home:
    """Where a cache is written: its folder; for a remote one the mirror, which is published to its URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def pull(self) -> None:
        """Update the folder from the URL."""

    def publish(self) -> None:
        """Send what is new in the folder to the URL."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the URL for writing (the folder has a lock of its own)."""
        yield


class Mirror(Home):
    """A remote cache and its local copy."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        super().__init__(folder or mirror_folder(url))
        self.url, self.store = url, ObjectStore(url)
        if "/" not in self.store.root:  # its sibling would be another bucket
            raise InputError(f"{url}: names no folder in a bucket; give one, such as s3://bucket/cache")
        self._sent: dict[str, str] = {}  # crc32c of every object that is known to be at the URL
        self._published: set[str] = set()  # shards that are at the URL whole

    def __str__(self) -> str:
        return self.url

    def _lock_file(self, name: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{name}")

    def pull(self) -> None:
        """Fetch fingerprint, tables and plan; not while a process of this machine writes: its mirror is newer."""
        with file_lock(self._lock_file("pull"), wait=True), file_lock(self._lock_file("write")) as is_free:
            if is_free:
                self._synchronise()

    def pull_files(self, place: str) -> None:
        """Fetch a file, an array or a shard (`shards/00003`) where it is not here yet. Raises CacheError for damage."""
        shard = "/".join(place.split("/")[:2])
        for name, checksum in read_attributes(self.folder / shard)["files"].items():
            file = f"{shard}/{name}"
            if f"{file}/".startswith(f"{place}/") and not (self.folder / file).is_file():
                self.store.fetch(file, self.folder / file, checksum)

    def publish(self) -> None:
        """Send what is new, tables last. Raises CacheError where the store keeps failing; the next call continues."""
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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the URL for writing and update the mirror. Raises CacheError where another process has the lock."""
        with ExitStack() as stack:
            with file_lock(self._lock_file("pull"), wait=True):  # a reader that pulls has the lock for a moment
                is_free = stack.enter_context(file_lock(self._lock_file("write")))
            if not is_free:
                raise CacheError(f"{self.url}: another process on this machine is writing this cache; wait for it")
            self._take_lock()
            try:
                self._synchronise()
                yield
            finally:
                self.store.remove(LOCK)

    def _take_lock(self) -> None:
        pid = os.getpid()
        mine = {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid), "token": uuid.uuid4().hex}
        for _ in range(2):
            if self.store.create(LOCK, mine):
                return
            try:
                owner = json.loads(self.store.read(LOCK))
            except (FileNotFoundError, ValueError):
                owner = {}
            is_gone = owner.get("host") == mine["host"] and _start_of(owner.get("pid")) != owner.get("started")
            if owner and not is_gone:
                break
            self.store.remove(LOCK)
        process = f"process {owner.get('pid')} on {owner.get('host')}"
        raise CacheError(f"{self.url}/{LOCK}: {process} is writing this cache; wait, or remove that object")

    def _synchronise(self) -> None:
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


class ExactCopy(Mirror):
    """Every object of a remote cache as it is, damaged or not, in a folder of its own."""

    def _synchronise(self) -> None:
        if self._sent:  # it stays as it was fetched
            return
        names = self.store.infos().keys() - {LOCK}
        if "zarr.json" not in names:
            raise MissingError(f"cache {self.url} does not exist")
        for name in names:
            self.store.fetch(name, self.folder / name)
            self._sent[name] = file_crc32c(self.folder / name)

    def publish(self) -> None:
        """Send what was repaired, and remove what the repair removed."""
        super().publish()
        for name in [name for name in self._sent if not (self.folder / name).is_file()]:
            self.store.remove(name)
            del self._sent[name]


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
