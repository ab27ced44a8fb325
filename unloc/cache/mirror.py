"""A cache in a bucket: `s3://bucket/cache`, `memory://cache`, a URL that fsspec knows.

It is the same tree of objects, so any Zarr reader opens it there. Here it has a local copy (a mirror), which is what is
mapped and written; tables are fetched on opening, a shard's tokens when the first of its videos is read. So reading
takes as much local disk as the shards that are read, writing as much as what is written.

An object store has no rename: a shard is there once its `zarr.json` is, which is sent after everything else of it. What
is fetched is held against the checksums of its table. `mirror.json` tells a cache from another that was at the URL
before; a mirror of that one is thrown away.
"""

import atexit
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache as remembered
from pathlib import Path

from unloc.cache.object_store import ObjectStore
from unloc.cache.reading import read_attributes, read_checked
from unloc.errors import CacheError, InputError, MissingError
from unloc.files import file_crc32c, file_lock, write_file

KINDS = ("shards", "texts")
IDENTITY, LOCK = "mirror.json", "lock"
FIRST = ("shards/zarr.json", "texts/zarr.json", IDENTITY, "zarr.json", "projections.json", "plan.json", "aliases.json")
LAST = ("ledger.jsonl", "summary.json")


class Home:
    """Where a cache is written: its folder; of a remote one the mirror, which is published to its URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def beside(self, suffix: str) -> "Home":
        """Of a cache with another fingerprint, whose name has the suffix."""
        return Home(self.folder.with_name(f"{self.folder.name}-{suffix}"))

    def pull(self) -> None:
        """Bring the folder up to what stands at the URL."""

    def publish(self) -> None:
        """Bring what is new in the folder to the URL."""

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the URL for writing; a folder's own lease is another (`pipeline.ledger`)."""
        yield


class Mirror(Home):
    """A remote cache and its local copy."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        super().__init__(folder or mirror_folder(url))
        self.url, self.store = url, ObjectStore(url)
        if "/" not in self.store.root:  # a cache beside it would be another bucket
            raise InputError(f"{url}: names no folder in a bucket; give one, such as s3://bucket/cache")
        self._sent: dict[str, str] = {}
        """crc32c of every object that is known to stand at the URL."""
        self._settled: set[str] = set()
        """Shards that stand at the URL whole."""

    def __str__(self) -> str:
        return self.url

    def beside(self, suffix: str) -> "Mirror":
        """Of a cache with another fingerprint, whose name has the suffix."""
        return Mirror(f"{self.url}-{suffix}")

    def pull(self) -> None:
        """Bring fingerprint, tables and plan here; while a process here writes the cache, its mirror is ahead."""
        with file_lock(_beside(self.folder, "pull"), wait=True), file_lock(_beside(self.folder, "lease")) as free:
            if free:
                self._synchronise()

    def pull_files(self, place: str) -> None:
        """Bring a file, an array or all of a shard (`shards/00003/frames`) here, as far as it is not.

        Raises CacheError for damage.
        """
        shard = "/".join(place.split("/")[:2])
        for name, checksum in read_attributes(self.folder / shard)["files"].items():
            file = f"{shard}/{name}"
            if f"{file}/".startswith(f"{place}/") and not (self.folder / file).is_file():
                self.store.fetch(file, self.folder / file, checksum)

    def publish(self) -> None:
        """Bring what is new here to the URL: tokens before the table that makes them visible.

        Raises CacheError where the store keeps failing; nothing is lost, the next call goes on.
        """
        if not (self.folder / "zarr.json").is_file():
            return
        if not (self.folder / IDENTITY).is_file():
            write_file(self.folder / IDENTITY, json.dumps({"id": uuid.uuid4().hex}))
        for name in FIRST:
            self._send_if_changed(name)
        for shard in self.local_shards():
            if shard not in self._settled:
                files = sorted(item for item in (self.folder / shard).rglob("*") if item.is_file())
                table = self.folder / shard / "zarr.json"
                for file in [*(file for file in files if file != table), table]:
                    self._send_if_changed(file.relative_to(self.folder).as_posix())
                self._settled.add(shard)
        for name in LAST:
            self._send_if_changed(name)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the URL for writing, up to date. Raises CacheError where another process holds it."""
        with ExitStack() as held:
            with file_lock(_beside(self.folder, "pull"), wait=True):  # a reader that pulls holds the lease for a moment
                free = held.enter_context(file_lock(_beside(self.folder, "lease")))
            if not free:
                raise CacheError(f"{self.url}: another process on this machine is writing this cache; wait for it")
            self._take_lock()
            try:
                self._synchronise()
                yield
            finally:
                self.store.remove(LOCK)

    def _take_lock(self) -> None:
        pid = os.getpid()
        mine = {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "token": uuid.uuid4().hex}
        if self.store.create(LOCK, mine):
            return
        try:
            holder = json.loads(self.store.read(LOCK))
        except (FileNotFoundError, ValueError):
            holder = {}
        gone = holder.get("host") == mine["host"] and _started(holder.get("pid")) != holder.get("started")
        if holder and not gone:
            raise CacheError(
                f"{self.url}/{LOCK}: process {holder.get('pid')} on {holder.get('host')} is writing this cache; wait "
                "for it, or remove that object if the process is gone"
            )
        self.store.replace(LOCK, mine)  # it was left by a process of this machine that was killed

    def _synchronise(self) -> None:
        there = self.store.sizes()
        if "zarr.json" not in there or self._remote_identity(there) != self._local_identity():
            shutil.rmtree(self.folder, ignore_errors=True)  # of a cache that is no longer at the URL
        if "zarr.json" not in there:
            return
        planned_here = self._plan()
        for name in (*FIRST, *LAST):
            if name in there and not (name == "ledger.jsonl" and self._ledger_is_ahead(there[name])):
                self.store.fetch(name, self.folder / name)
                self._sent[name] = file_crc32c(self.folder / name)
        tables = {name.removesuffix("/zarr.json") for name in there if name.count("/") == 2 and "zarr.json" in name}
        for shard in tables:
            self._pull_table(shard)
        self._drop_strays(tables, planned_here)

    def _remote_identity(self, there: dict[str, int]) -> bytes | None:
        return self.store.read(IDENTITY) if IDENTITY in there else None

    def _local_identity(self) -> bytes | None:
        file = self.folder / IDENTITY
        return file.read_bytes() if file.is_file() else None

    def _plan(self) -> dict[str, list[str]]:
        return read_checked(self.folder / "plan.json")

    def _ledger_is_ahead(self, remote_bytes: int) -> bool:
        file = self.folder / "ledger.jsonl"
        return file.is_file() and file.stat().st_size > remote_bytes

    def _pull_table(self, shard: str) -> None:
        """The table of a remote shard; tokens that belong to another table go."""
        raw, local = self.store.read(f"{shard}/zarr.json"), self.folder / shard / "zarr.json"
        if not local.is_file() or local.read_bytes() != raw:
            shutil.rmtree(local.parent, ignore_errors=True)
            self.store.fetch(f"{shard}/zarr.json", local)
        self._settled.add(shard)

    def _drop_strays(self, tables: set[str], planned_here: dict[str, list[str]]) -> None:
        """Shards that only stand here are ours to publish if the plan at the URL has them too."""
        plan = self._plan()
        for shard in self.local_shards():
            kind, _, name = shard.partition("/")
            if shard not in tables and (kind == "texts" or plan.get(name) != planned_here.get(name, [])):
                shutil.rmtree(self.folder / shard)

    def local_shards(self) -> list[str]:
        """Shards whose table is here, `shards/00000` …, `texts/00000` …"""
        tables = (file for kind in KINDS for file in sorted((self.folder / kind).glob("[0-9]*/zarr.json")))
        return [file.parent.relative_to(self.folder).as_posix() for file in tables]

    def _send_if_changed(self, name: str) -> None:
        file = self.folder / name
        if file.is_file() and self._sent.get(name) != (checksum := file_crc32c(file)):
            self.store.send(file, name)
            self._sent[name] = checksum


class ExactCopy(Mirror):
    """Every object of a remote cache as it is, damaged or not, in a folder of its own."""

    def pull_everything(self) -> None:
        """Fetch all of it. Raises MissingError where there is no cache."""
        names = self.store.sizes().keys() - {LOCK}
        if "zarr.json" not in names:
            raise MissingError(f"cache {self.url} does not exist")
        for name in names:
            self.store.fetch(name, self.folder / name)
            self._sent[name] = file_crc32c(self.folder / name)

    def publish(self) -> None:
        """Send what was mended, and remove what mending removed."""
        super().publish()
        for name in list(self._sent):
            if not (self.folder / name).is_file():
                self.store.remove(name)
                del self._sent[name]

    def _synchronise(self) -> None:
        """Nothing: it is what it is."""


def mirror_folder(url: str) -> Path:
    """Where the local copy of a remote cache lies: below $UNLOC_MIRRORS, else ~/.cache/unloc/mirrors.

    A `memory://` cache goes with its process, and so does its copy.
    """
    home = Path(os.environ.get("UNLOC_MIRRORS") or Path.home() / ".cache" / "unloc" / "mirrors")
    if url.startswith("memory:"):
        home = _home_of_this_process()
    return home / hashlib.sha256(url.encode()).hexdigest()[:12] / url.rpartition("/")[2]


@remembered
def _home_of_this_process() -> Path:
    home = tempfile.mkdtemp(prefix="unloc-mirrors-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Path(home)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def _started(pid: int | None) -> str | None:
    """A mark of the process of that id which a later one with the same id does not share; None where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
