"""Claiming a cache for writing: which folder, held by nobody else, cleared of what a killed run left."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unloc.cache.mirror import Home
from unloc.cache.writing import create_or_check, fingerprint_hash
from unloc.errors import FingerprintError
from unloc.files import folder_lock, remove_leftovers
from unloc.inference.encode import recorded_versions

logger = logging.getLogger(__name__)


def own_cache(home: Home, fingerprint: dict) -> Home:
    """The cache asked for, made if need be; where another fingerprint made it, one beside it that names ours."""
    home.pull()
    try:
        create_or_check(home.folder, fingerprint, recorded_versions())
    except FingerprintError as error:
        other = beside(home, fingerprint)
        logger.warning("%s; a new cache is at %s", str(error).split("; extract with")[0], other)
        other.pull()
        create_or_check(other.folder, fingerprint, recorded_versions())
        return other
    return home


def beside(home: Home, fingerprint: dict) -> Home:
    """Where tokens go if the cache asked for holds those of another tower or preprocessing."""
    return home.beside(fingerprint_hash(fingerprint)[:8])


@contextmanager
def held(home: Home, fingerprint: dict) -> Iterator[None]:
    """Both leases, and the cache made or checked again now that nobody else writes; it is at its URL before a video."""
    with home.lease():
        create_or_check(home.folder, fingerprint, recorded_versions())
        with folder_lock(home.folder):
            create_or_check(home.folder, fingerprint, recorded_versions())
            home.publish()
            yield


@contextmanager
def tidied_up(path: Path) -> Iterator[None]:
    """Half-written files are removed when the disk fails: they may be what fills it."""
    try:
        yield
    except OSError:
        remove_leftovers(path)
        raise
