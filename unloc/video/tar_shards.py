"""Videos in tar files, as WebDataset lays them out: found by their headers, read in place, packed by `unloc data pack`.

A member takes a file's place wherever a job asks for name, size, time or content, and so does an object at a URL
(`remote_video`). Decoders want a file they can seek in: `on_disk` gives them one without a name, which the system takes
back however its process ends.
"""

import io
import logging
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO

from unloc.errors import InputError, MissingError, VideoError
from unloc.video.remote_video import RemoteVideo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarMember:
    """One file in a tar file; what a job needs of a `Path`, and nothing else."""

    tar: Path
    path: str
    """Its name in the tar file, with folders."""
    offset: int
    """Where its bytes begin."""
    size: int
    mtime_ns: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.path}"

    @property
    def name(self) -> str:
        """Without folders."""
        return PurePosixPath(self.path).name

    def stat(self) -> SimpleNamespace:
        """Size and time of change."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=self.mtime_ns)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes."""
        return io.BufferedReader(_Slice(self.tar, self.offset, self.size))

    def fetch(self, copy: BinaryIO, on_progress: Callable[[], None]) -> None:
        """Write it into an open file. Raises VideoError (truncated) where the tar file ends within it."""
        with self.open() as source:
            while block := source.read(1 << 20):
                copy.write(block)
                on_progress()
        copy.flush()
        if copy.tell() < self.size:
            raise VideoError(
                f"{self}: the tar file ends after {copy.tell()} of its {self.size} bytes", reason="truncated"
            )


class _Slice(io.RawIOBase):
    """A part of a file, read forward."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._handle, self._left = path.open("rb", buffering=0), size
        self._handle.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        count = self._handle.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def close(self) -> None:
        self._handle.close()
        super().close()


VideoFile = Path | TarMember | RemoteVideo


@contextmanager
def on_disk(file: VideoFile, on_progress: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A path at which this process can open the video: itself, or an unnamed copy of a tar file's member or an object.

    Raises as their `fetch` does; VideoErrors name the file itself.
    """
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


def expand_shards(pattern: str) -> list[Path]:
    """Paths of `videos-{000..127}.tar` or `videos-*.tar`, or of several patterns joined by `::`; all must be there.

    Raises InputError for a URL, MissingError naming the first that is not there.
    """
    from webdataset.shardlists import expand_urls  # here: it imports torch

    names = expand_urls(pattern)
    for name in names:
        if "://" in name:
            raise InputError(f"--shards: {name} is a URL; tar files are read in place: mount the bucket or copy them")
    paths = [path for name in names for path in _matching(Path(name))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingError(f"--shards: {len(missing)} of {len(paths)} tar files are not there (first: {missing[0]})")
    return paths


def _matching(path: Path) -> list[Path]:
    """A path, or those that a `*` in its last part stands for; itself where there are none."""
    return (sorted(path.parent.glob(path.name)) if "*" in path.name else []) or [path]


def shard_members(pattern: str) -> dict[str, TarMember]:
    """Every file in the tar files of a pattern by its name there.

    Raises InputError for what is no plain tar file and for a name that stands in two places, MissingError for an absent
    tar file. A tar file that breaks off gives what is named before its end.
    """
    found: dict[str, TarMember] = {}
    for tar in expand_shards(pattern):
        for member in _members(tar):
            other = found.setdefault(member.path, member)
            if other is not member:
                raise InputError(f"--shards: {member.path} stands in {other.tar} and in {tar}; which one is meant?")
    return found


def _members(tar: Path) -> Iterator[TarMember]:
    count = 0
    try:
        with tarfile.open(tar, "r:") as opened:
            for item in opened:
                count += 1
                if item.isreg():
                    name = PurePosixPath(item.name).as_posix()
                    yield TarMember(tar, name, item.offset_data, item.size, int(item.mtime * 1e9))
    except tarfile.ReadError as error:
        if not count:
            raise InputError(
                f"--shards: {tar} is no plain tar file ({error}); compressed ones cannot be read in place, unpack them"
            ) from None
        logger.warning("%s breaks off after its file %d (%s); what would follow is missing", tar, count, error)
