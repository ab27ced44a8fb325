"""Videos at a URL (`s3://…`, `https://…`, anything that fsspec opens): listed here, fetched where they are decoded."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO
from urllib.parse import unquote

from fsspec.callbacks import Callback

from unloc.cache.object_store import ObjectStore
from unloc.errors import CacheError, MissingError, VideoError

CHANGED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
TAG_KEYS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "crc32c", "generation", "versionId")


@dataclass(frozen=True)
class RemoteVideo:
    """One object of a store; what a job needs of a `Path`, and nothing else."""

    folder: str
    """URL that was listed."""
    path: str
    """Its name below."""
    size: int | None
    """Bytes; None where the store does not say."""
    mtime_ns: int
    """0 where the store does not say."""
    tag: str
    """What the store calls this version of it."""

    def __str__(self) -> str:
        return f"{self.folder}/{self.path}"

    @property
    def name(self) -> str:
        """Without folders."""
        return self.place.name

    @property
    def place(self) -> PurePosixPath:
        """Its path as people write it; a web server's links are quoted."""
        return PurePosixPath(unquote(self.path) if self.folder.startswith("http") else self.path)

    def stat(self) -> SimpleNamespace:
        """Size and time of change, as they were listed."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=self.mtime_ns)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its bytes, fetched into a file without a name. Raises FileNotFoundError, or OSError where the store fails."""
        copy = tempfile.TemporaryFile(prefix="unloc-")  # noqa: SIM115 the caller closes it
        try:
            self.fetch(copy, lambda: None)
        except VideoError as error:
            raise FileNotFoundError(str(error)) from None
        copy.seek(0)
        return copy

    def current(self) -> "RemoteVideo":
        """The version that is there now. Raises VideoError where there is none, OSError where the store fails."""
        try:
            return _asked(self.folder, self.path)
        except FileNotFoundError:
            raise VideoError(f"{self}: is not there (any more)", reason="not_found") from None
        except CacheError as error:
            raise OSError(str(error)) from None

    def fetch(self, copy: BinaryIO, on_progress: Callable[[], None]) -> None:
        """Write it into an open file. Raises as `current`; a download that breaks off is tried again."""
        try:
            ObjectStore(self.folder).download(self.path, copy, self.size, _Ticks(on_progress))
        except FileNotFoundError:
            raise VideoError(f"{self}: is not there any more", reason="not_found") from None
        except CacheError as error:
            raise OSError(str(error)) from None


class _Ticks(Callback):
    def __init__(self, on_progress: Callable[[], None]) -> None:
        super().__init__()
        self.on_progress = on_progress

    def relative_update(self, inc: int = 1) -> None:
        self.on_progress()


def list_videos(url: str) -> list[RemoteVideo]:
    """Every object below a URL. Raises MissingError where there is none, CacheError where the store fails."""
    found = [_from_info(url, name, info) for name, info in ObjectStore(url).infos().items()]
    if not found:
        raise MissingError(f"--videos: {url} does not exist or holds nothing")
    # A web server's list of links says nothing of sizes.
    return [file if file.size is not None else _asked(url, file.path) for file in found]


def at_url(url: str) -> RemoteVideo | None:
    """The object at a URL, None where there is none. Raises CacheError where the store fails."""
    folder, _, name = url.rpartition("/")
    try:
        return _asked(folder, name)
    except FileNotFoundError:
        return None


def _asked(folder: str, path: str) -> RemoteVideo:
    return _from_info(folder, path, ObjectStore(folder).info(path))


def _from_info(folder: str, path: str, info: dict) -> RemoteVideo:
    changed = next((info[key] for key in CHANGED_KEYS if info.get(key) is not None), 0)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    tag = next((str(info[key]) for key in TAG_KEYS if info.get(key) is not None), "")
    return RemoteVideo(folder, path, info.get("size"), round(seconds * 1e6) * 1000, tag)
