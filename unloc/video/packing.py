"""A folder of videos into WebDataset tar shards: few large files in place of many small ones.

The manifest's order and the file sizes alone decide which video is in which shard; times are kept and owners left out,
so the same videos give the same bytes. A shard appears when it is complete; an existing one is not written again.
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unloc.errors import InputError
from unloc.files import replacing
from unloc.video.video_file import VideoFile

SHARD_NAME = "videos-{:06d}.tar"
BLOCK = 512  # what a header takes, and what contents are rounded up to


@dataclass(frozen=True)
class PackSummary:
    """What was packed."""

    shards: int
    written_now: int
    videos: int
    bytes: int
    pattern: str
    """For `unloc extract --shards`."""


def pack_videos(
    videos: pd.DataFrame,
    files: dict[str, VideoFile],
    out: Path,
    *,
    shard_bytes: int = 1 << 30,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write a manifest's `videos`, found as `files`, into OUT/videos-000000.tar and so on.

    A shard holds at most `shard_bytes` of videos, or one video that is larger. Raises InputError where there is nothing
    to pack, or OUT has shards of other videos.
    """
    shards: list[list[tuple[tarfile.TarInfo, Path]]] = []
    room = num_bytes = 0
    for name, file in _names_in_shards(videos, files).items():
        stat, header = file.stat(), tarfile.TarInfo(name)
        header.size, header.mtime, header.mode = stat.st_size, int(stat.st_mtime), 0o644
        num_bytes += header.size
        size = BLOCK + -(-header.size // BLOCK) * BLOCK
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append((header, file))
        room -= size
    if not shards:
        raise InputError(f"{out}: no video of the manifest was found; nothing is packed")
    paths = [out / SHARD_NAME.format(number) for number in range(len(shards))]
    strays = sorted({*out.glob("videos-*.tar")} - {*paths})
    if strays:
        raise InputError(f"{out}: has shards of another packing (first: {strays[0].name}); pack into a new folder")
    written = 0
    for number, (path, shard) in enumerate(zip(paths, shards, strict=True), start=1):
        if not path.is_file():
            with replacing(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
                for header, file in shard:
                    with file.open("rb") as source:
                        tar.addfile(header, source)
            written += 1
        elif _headers(path) != [(header.name, header.size, header.mtime) for header, _ in shard]:
            raise InputError(f"{path}: holds other videos than this packing puts there; pack into a new folder")
        if on_progress:
            on_progress(number, len(paths))
    numbers = f"{{000000..{len(paths) - 1:06d}}}" if len(paths) > 1 else "000000"
    pattern = str(out / SHARD_NAME.replace("{:06d}", numbers))
    return PackSummary(len(paths), written, sum(map(len, shards)), num_bytes, pattern)


def _names_in_shards(videos: pd.DataFrame, files: dict[str, VideoFile]) -> dict[str, Path]:
    """Files by the name under which `unloc extract` will look for them: the manifest's file, else the video's id."""
    named = videos.drop_duplicates("video_id").set_index("video_id")["file"]
    packed: dict[str, Path] = {}
    for video_id, file in files.items():
        if not isinstance(file, Path):
            raise InputError(f"{file}: only files in a folder are packed; copy it first, or extract from its URL")
        if isinstance(named[video_id], str):
            packed[Path(named[video_id]).as_posix()] = file
        elif "/" in video_id:
            raise InputError(f"video {video_id!r}: its id has a slash; name its file in the manifest")
        else:
            packed[f"{video_id}{file.suffix}"] = file
    return packed


def _headers(path: Path) -> list[tuple[str, int, float]] | None:
    try:
        with tarfile.open(path, "r:") as tar:
            return [(item.name, item.size, item.mtime) for item in tar]
    except tarfile.ReadError:
        return None
