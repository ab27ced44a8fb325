"""Files that appear whole or not at all, their checksums, and locks between processes."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import google_crc32c

from unloc.errors import CacheError

logger = logging.getLogger(__name__)
LOCK = "lock"
_LOCKED: set[TextIO] = set()
# A forked process would otherwise share the lock and keep it when this one is killed.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _LOCKED])


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, None for a local path. `Path` turns `s3://bucket` into `s3:/bucket`."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?=[^/]|$)", str(path))
    if match is None or match[1].lower() == "file":
        return None
    return f"{match[1].lower()}://{str(path)[match.end() :].rstrip('/')}"


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path, renamed to `path` at the end or removed after an error; `sync`: power cuts are survived."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        if sync:
            fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        fsync(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, with its folder; text as UTF-8, a lone surrogate as its JSON escape."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def fsync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_folder(part: Path, target: Path) -> None:
    """Rename a written folder `.NAME.part` once it is on the disk; `remove_leftovers` restores what it replaces."""
    for item in [*part.rglob("*"), part]:
        fsync(item)
    replaced = part.with_name(f".{target.name}.old.part")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    part.rename(target)
    fsync(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder and its subfolders; restore folders being replaced."""
    for replaced in folder.glob("*/.*.old.part"):
        target = replaced.with_name(replaced.name[1 : -len(".old.part")])
        if not target.exists():
            replaced.rename(target)
    for leftover in [*folder.glob("*/.*.part"), *folder.glob(".*.part")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextmanager
def disk_full_errors(path: Path | str) -> Iterator[None]:
    """Turn the error of a full disk into a CacheError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space and run the same command again (fit: with --resume); finished work is kept"
            raise CacheError(f"{path}: no space left; {advice}") from error
        raise


def file_identity(file: Any) -> dict:
    """Size and time of change of what has a `stat`, a cheap test for a changed file; empty where it has none."""
    try:
        stat = file.stat()
    except OSError:
        return {}
    return {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_crc32c(path: Path) -> str:
    """crc32c of a file's bytes, eight hexadecimal digits."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum.update(block)
    return checksum.hexdigest().decode()


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[TextIO | None]:
    """Lock a file at most until this process ends; yields it open, or None where another process has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s); run one writer at a time", path, error.strerror)
        _LOCKED.add(file)
        try:
            yield file
        finally:
            _LOCKED.remove(file)


@contextmanager
def folder_lock(folder: Path, action: str = "writing this cache") -> Iterator[None]:
    """Lock FOLDER/lock, removed at the end. Raises CacheError naming the process that has it and its `action`."""
    path, is_current = folder / LOCK, False
    while True:
        with file_lock(path) as file:
            if file is None:
                owner = ""
                with suppress(FileNotFoundError):
                    owner = path.read_text(encoding="utf-8")
                raise CacheError(f"{path}: {owner or 'another process'} is {action}; wait for it to end")
            with suppress(FileNotFoundError):
                is_current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if not is_current:  # the process that had the lock has just removed the file
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
