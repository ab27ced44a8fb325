"""What bytes say about a file's completeness: sizes stated by MP4, Matroska and AVI, zeros of a failed download."""

from pathlib import Path

ZERO_HOLE = bytes(16_384)  # longer than a block of silence in uncompressed sound


def mp4_boxes(path: Path) -> tuple[list[bytes], int, bool]:
    """(names of the top-level boxes, byte after the last of them, False where something else than a box follows).

    The last box may state an end beyond the file's.
    """
    names, end, num_bytes = [], 0, path.stat().st_size
    with path.open("rb") as handle:
        while end + 8 <= num_bytes:
            handle.seek(end)
            head = handle.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8 or not head[4:8].isascii() or not head[4:8].strip(b"\0"):
                return names, end, False
            names.append(head[4:8])
            end += size
    return names, end, True


def missing_mp4_index(path: Path) -> str | None:
    """The message for an MP4/MOV file that was cut off before the end of its index (`moov`); None for other files."""
    names, end, _ = mp4_boxes(path)
    num_bytes = path.stat().st_size
    if end <= num_bytes or names[0] not in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip"):
        return None
    where = "inside" if b"moov" in names else "before"
    return f"the file is cut off {where} its index, at {num_bytes} of at least {end} bytes; nothing can be read"


def stated_bytes(path: Path, container: str) -> tuple[int | None, int | None]:
    """(length of the file as its container states it, byte at which a hole of zeros ends the boxes of an MP4/MOV file).

    None where the container states no length, and where there is no such hole.
    """
    with path.open("rb") as handle:
        if "mov" in container:
            _, end, is_sound = mp4_boxes(path)
            handle.seek(end)
            has_hole = not is_sound and handle.read(8)[:4] == bytes(4)
            has_hole = has_hole and any(block.strip(b"\0") for block in iter(lambda: handle.read(1 << 20), b""))
            return (end if is_sound else None), (end if has_hole else None)
        if container == "avi":
            head = handle.read(12)
            is_stated = head[:4] == b"RIFF" and head[4:8] != bytes(4)
            return (8 + int.from_bytes(head[4:8], "little") if is_stated else None), None
        position = 0
        for _ in range(4 if "matroska" in container else 0):  # the EBML header, perhaps a void, then the segment
            handle.seek(position)
            head = handle.read(12)
            if len(head) < 12 or head[4] == 0:
                break
            length = 9 - head[4].bit_length()
            unknown = (1 << 7 * length) - 1
            size = int.from_bytes(head[4 : 4 + length], "big") & unknown
            if head[:4] == b"\x18\x53\x80\x67":  # the segment
                return (None if size == unknown else position + 4 + length + size), None
            position += 4 + length + size
    return None, None


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
