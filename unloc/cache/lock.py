"""One process at a time in a folder: FOLDER/lock names the holder and is locked by the system while that lives."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from unloc.errors import CacheError

logger = logging.getLogger(__name__)
LOCK = "lock"


@contextmanager
def lease(folder: Path, doing: str = "writing this cache") -> Iterator[None]:
    """Hold a folder for one process. Raises CacheError where another one holds it, saying what that is `doing`.

    The system's own file lock: it goes with the process that took it, however that ends.
    """
    path = folder / LOCK
    handle = _locked(path, doing)
    try:
        handle.truncate(0)
        handle.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        handle.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        handle.close()


def _locked(path: Path, doing: str) -> TextIO:
    while True:
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"{path}: {_holder(handle)} is {doing}; wait for it to end") from None
        except OSError as error:  # some network file systems
            logger.warning("%s: no locks here (%s); see that only one process writes", path, error.strerror)
            return handle
        if _is_at(handle, path):
            return handle
        handle.close()  # whoever held it has just removed it


def _holder(handle: TextIO) -> str:
    handle.seek(0)
    with handle, suppress(ValueError, KeyError):
        holder = json.loads(handle.read())
        return f"process {holder['pid']} on {holder['host']}"
    return "another process"


def _is_at(handle: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False
