"""A video's file: on a file system, in a tar shard, or at a URL; `on_disk` gives decoders a file that can seek."""

import hashlib
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO
from urllib.parse import unquote

from fsspec.callbacks import Callback

from unloc.cache.object_store import ObjectStore
from unloc.callbacks import Heartbeat
from unloc.errors import CacheError, VideoError

BLOCK = 1 << 20
CHANGED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
TAG_KEYS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "crc32c", "generation", "versionId")


@dataclass(frozen=True)
class _StoredFile:
    """A file inside something larger, with the parts of a `Path` that a job needs."""

    parent: Path | str  # the tar file, or the URL that was listed
    path: str  # its name in there, with folders
    size: int | None  # bytes; None where a URL's store does not say
    mtime_ns: int  # 0 where a URL's store does not say

    def __str__(self) -> str:
        return f"{self.parent}/{self.path}"

    @property
    def place(self) -> PurePosixPath:
        """The path with the quoting of a web server's links undone."""
        is_web = str(self.parent).startswith(("http://", "https://"))
        return PurePosixPath(unquote(self.path) if is_web else self.path)

    @property
    def name(self) -> str:
        return self.place.name

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=self.size, st_mtime_ns=self.mtime_ns)


@dataclass(frozen=True)
class TarMember(_StoredFile):
    """A file in a plain tar file, read in place."""

    offset: int  # where its bytes begin

    def fetch(self, copy: BinaryIO, on_progress: Heartbeat) -> None:
        """Write it into an open file. Raises VideoError (truncated) where the tar file ends within it."""
        with Path(self.parent).open("rb") as source:
            source.seek(self.offset)
            while block := source.read(min(BLOCK, self.size - copy.tell())):
                copy.write(block)
                on_progress()
        copy.flush()
        if copy.tell() < self.size:
            message = f"{self}: the tar file ends after {copy.tell()} of its {self.size} bytes"
            raise VideoError(message, reason="truncated")


@dataclass(frozen=True)
class RemoteVideo(_StoredFile):
    """An object at a URL (`s3://…`, `https://…`, anything that fsspec opens)."""

    tag: str  # the store's own mark of this version of the object

    @classmethod
    def at(cls, folder: str, path: str, info: dict | None = None) -> "RemoteVideo":
        """From fsspec's record of it, by default that of now. Raises FileNotFoundError; CacheError: the store fails."""
        info = info or ObjectStore(folder).info(path)
        changed = next((info[key] for key in CHANGED_KEYS if info.get(key) is not None), 0)
        if isinstance(changed, str):
            changed = datetime.fromisoformat(changed)
        seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
        tag = next((str(info[key]) for key in TAG_KEYS if info.get(key) is not None), "")
        return cls(folder, path, info.get("size"), round(seconds * 1e6) * 1000, tag)

    def current(self) -> "RemoteVideo":
        """The version that is there now. Raises VideoError where there is none, OSError where the store fails."""
        with self._errors():
            return RemoteVideo.at(self.parent, self.path)

    def fetch(self, copy: BinaryIO, on_progress: Heartbeat) -> None:
        """Write it into an open file. Raises as `current`; a failed download is tried again."""
        with self._errors():
            callback = Callback(hooks={"progress": lambda *_, **__: on_progress()})
            path = Path(f"/proc/self/fd/{copy.fileno()}")
            ObjectStore(self.parent).download(self.path, path, self.size, callback=callback)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise VideoError(f"{self}: does not exist (any more)", reason="not_found") from None
        except CacheError as error:
            raise OSError(str(error)) from None


VideoFile = Path | TarMember | RemoteVideo


@contextmanager
def on_disk(file: VideoFile, on_progress: Heartbeat = lambda: None) -> Iterator[Path]:
    """The file's path, or that of an unnamed copy; errors name the file. Raises as `fetch` does."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryFile(prefix="unloc-") as copy:
        file.fetch(copy, on_progress)
        path = Path(f"/proc/self/fd/{copy.fileno()}")
        try:
            yield path
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), str(file)), reason=error.reason) from None


def file_version(file: VideoFile) -> Hashable | None:
    """What every change of a file (of its tar file, or of its object) changes; None where there is no file."""
    try:
        if isinstance(file, RemoteVideo):
            return file.current()
        stat = (Path(file.parent) if isinstance(file, TarMember) else file).stat()
    except (OSError, VideoError):
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_hash(file: VideoFile, on_progress: Heartbeat = lambda: None) -> str:
    """sha256 of the file's content. Raises as `on_disk`."""
    digest = hashlib.sha256()
    with on_disk(file, on_progress) as path, path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
            on_progress()
    return digest.hexdigest()
