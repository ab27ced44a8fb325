"""JSON files of a cache that carry a checksum over their own bytes: the `zarr.json` of groups, plan, aliases."""

import json
from contextlib import suppress
from pathlib import Path

import google_crc32c

from unloc.errors import CacheError
from unloc.files import write_file

FORMAT = 3
SHARD_NAME = "{:05d}"
CHECKSUM_KEY = "crc32c"
_MARK, _ZEROS = f'"{CHECKSUM_KEY}": "'.encode(), b"00000000"


def read_attributes(group: Path) -> dict:
    """Attributes of a Zarr group. Raises CacheError where its metadata is gone, damaged or of another format."""
    attributes = _read(group / "zarr.json", "attributes")
    if (found := attributes.get("unloc_cache", FORMAT)) != FORMAT:
        advice = f"this unloc reads {FORMAT}; run `unloc extract` again into a new folder"
        raise CacheError(f"{group}: cache format {found!r}, {advice}")
    return attributes


def read_checked(file: Path) -> dict:
    """What `write_checked` wrote, empty where there is no file. Raises CacheError where it is damaged."""
    return _read(file, "values") if file.is_file() else {}


def _read(file: Path, key: str) -> dict:
    with suppress(OSError, ValueError, KeyError, TypeError):
        raw = file.read_bytes()
        values = json.loads(raw)[key]
        if isinstance(values, dict) and raw == _with_checksum(raw):
            return values
    raise CacheError(damaged(file))


def damaged(file: Path) -> str:
    """The message of a CacheError."""
    return f"{file}: damaged; `unloc cache verify --repair` repairs what can be repaired"


def group_metadata(attributes: dict) -> bytes:
    """The `zarr.json` of a group, with the checksum as its last attribute."""
    values = {"zarr_format": 3, "node_type": "group", "attributes": attributes | {CHECKSUM_KEY: _ZEROS.decode()}}
    return _with_checksum(json.dumps(values, ensure_ascii=False).encode())  # indenting would be ten times slower


def write_checked(path: Path, values: dict) -> None:
    """Write values as JSON with a checksum (`read_checked`)."""
    stored = {"values": values, CHECKSUM_KEY: _ZEROS.decode()}
    write_file(path, _with_checksum(json.dumps(stored, ensure_ascii=False).encode()))


def _with_checksum(raw: bytes) -> bytes:
    """The same bytes with the crc32c of all of them, its own digits counted as zeros."""
    head, mark, tail = raw.rpartition(_MARK)
    checksum = google_crc32c.value(head + mark + _ZEROS + tail[8:])
    return head + mark + f"{checksum:08x}".encode() + tail[8:]
