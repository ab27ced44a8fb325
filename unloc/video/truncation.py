"""What a file's bytes say of its being whole: the sizes that its container states, and runs of zeros inside it.

MP4/MOV boxes, the Matroska segment and the RIFF chunk state their sizes; an interrupted download leaves zeros.
"""

from pathlib import Path
from typing import BinaryIO

ZERO_HOLE = bytes(16_384)  # longer than a block of silence in uncompressed sound
EBML_SEGMENT = bytes.fromhex("18538067")
EBML_UNKNOWN = tuple((1 << 7 * length) - 1 for length in range(1, 9))
MP4_TOP_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"mfra",
    b"sidx",
    b"styp",
    b"uuid",
    b"meta",
}


def stated_bytes(path: Path, container: str) -> int | None:
    """The length that the container's own structure asks of the file; None where it states none."""
    with path.open("rb") as handle:
        if "mov" in container:
            return _end_of_boxes(handle, path.stat().st_size)
        if "matroska" in container:
            return _end_of_segment(handle)
        if container == "avi":
            head = handle.read(12)
            return 8 + int.from_bytes(head[4:8], "little") if head[:4] == b"RIFF" and head[4:8] != bytes(4) else None
    return None


def _end_of_boxes(handle: BinaryIO, file_bytes: int) -> int | None:
    """Where the last box says it ends; None where a box has no size, or what follows is not a box."""
    position = 0
    while position + 8 <= file_bytes:
        size = box_bytes(handle, position)
        if size is None:
            return None
        position += size
    return position


def box_bytes(handle: BinaryIO, position: int) -> int | None:
    """Size of the MP4/MOV box at position; None where there is no box of a known size."""
    handle.seek(position)
    head = handle.read(16)
    size = int.from_bytes(head[:4], "big")
    size = int.from_bytes(head[8:16], "big") if size == 1 else size
    return size if size >= 8 and head[4:8].isascii() and head[4:8].strip(b"\0") else None


def first_bad_box(path: Path) -> int | None:
    """Byte at which an MP4/MOV file stops being boxes though more than zeros follows; None where it is sound."""
    file_bytes, position = path.stat().st_size, 0
    with path.open("rb") as handle:
        while position + 8 <= file_bytes:
            size = box_bytes(handle, position)
            if size is None:
                handle.seek(position)
                return position if handle.read(8)[:4] == bytes(4) and _any_nonzero(handle) else None
            position += size
    return None


def mp4_without_index(path: Path) -> str | None:
    """What to say of an MP4/MOV file that was cut off before its index (`moov`) came; None of any other file."""
    file_bytes, position, names = path.stat().st_size, 0, []
    with path.open("rb") as handle:
        while position + 8 <= file_bytes and (size := box_bytes(handle, position)) is not None:
            handle.seek(position + 4)
            names.append(handle.read(4))
            position += size
    if position <= file_bytes or names[0] not in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip"):
        return None
    inside = "inside" if b"moov" in names else "before"
    return f"the file is cut off {inside} its index, at {file_bytes} of at least {position} bytes; nothing can be read"


def _any_nonzero(handle: BinaryIO) -> bool:
    return any(block.strip(b"\0") for block in iter(lambda: handle.read(1 << 20), b""))


def holds_zero_run(path: Path, start: int, stop: int) -> bool:
    """Do the bytes start … stop of the file hold a block of zeros?"""
    with path.open("rb") as handle:
        handle.seek(start)
        while start < stop:
            data = handle.read(min(1 << 22, stop - start))
            if ZERO_HOLE in data or not data:
                return bool(data)
            start += len(data)
    return False


def _end_of_segment(handle: BinaryIO) -> int | None:
    position = 0
    for _ in range(4):  # the EBML header, perhaps a void, then the segment
        handle.seek(position)
        head = handle.read(12)
        if len(head) < 12:
            return None
        length = 9 - head[4].bit_length()
        if length > 8:
            return None
        size = int.from_bytes(head[4 : 4 + length], "big") & ((1 << 7 * length) - 1)
        if head[:4] == EBML_SEGMENT:
            return None if size == EBML_UNKNOWN[length - 1] else position + 4 + length + size
        position += 4 + length + size
    return None
