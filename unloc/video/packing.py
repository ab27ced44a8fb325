"""A folder of videos into WebDataset tar shards: the same manifest and files give the same bytes."""

import tarfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.files import replacing
from unloc.video.video_file import VideoFile

BLOCK = 512  # what a header takes, and what contents are rounded up to


class PackSummary(NamedTuple):
    """What was packed."""

    shards: int
    written_now: int
    videos: int
    bytes: int
    pattern: str  # for `unloc extract --shards`


def pack_videos(
    videos: pd.DataFrame,
    files: dict[str, VideoFile],
    out: Path,
    *,
    shard_bytes: int = 1 << 30,
    on_progress: OnProgress = lambda done, total: None,
) -> PackSummary:
    """Write a manifest's `videos`, found as `files`, into OUT/videos-000000.tar and so on, by the names in the
    manifest, else their ids. A shard holds at most `shard_bytes`, or one larger video; an existing one is kept. Raises
    InputError where there is nothing to pack, or OUT has shards of other videos.
    """
    named = videos.drop_duplicates("video_id").set_index("video_id")["file"]
    packed: dict[str, Path] = {}
    for video_id, file in files.items():
        if not isinstance(file, Path):
            raise InputError(f"{file}: only files in a folder are packed; copy it first, or extract from its URL")
        has_name = isinstance(named[video_id], str)
        if not has_name and "/" in video_id:
            raise InputError(f"video {video_id!r}: its id has a slash; name its file in the manifest")
        packed[Path(named[video_id]).as_posix() if has_name else f"{video_id}{file.suffix}"] = file
    if not packed:
        raise InputError(f"{out}: no video of the manifest was found; nothing is packed")

    shards: list[list[tuple[tarfile.TarInfo, Path]]] = []
    room = num_bytes = written = 0
    for name, file in packed.items():
        stat, header = file.stat(), tarfile.TarInfo(name)
        header.size, header.mtime, header.mode = stat.st_size, int(stat.st_mtime), 0o644
        num_bytes += header.size
        size = BLOCK + -(-header.size // BLOCK) * BLOCK
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append((header, file))
        room -= size
    paths = [out / f"videos-{number:06d}.tar" for number in range(len(shards))]
    strays = sorted({*out.glob("videos-*.tar")} - {*paths})
    if strays:
        raise InputError(f"{out}: has shards of another packing (first: {strays[0].name}); pack into a new folder")
    for number, (path, shard) in enumerate(zip(paths, shards, strict=True), start=1):
        if path.is_file():
            found = None
            with suppress(tarfile.ReadError), tarfile.open(path, "r:") as tar:
                found = [(item.name, item.size, item.mtime) for item in tar]
            if found != [(header.name, header.size, header.mtime) for header, _ in shard]:
                raise InputError(f"{path}: holds other videos than this packing puts there; pack into a new folder")
        else:
            with replacing(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
                for header, file in shard:
                    with file.open("rb") as source:
                        tar.addfile(header, source)
            written += 1
        on_progress(number, len(paths))
    numbers = f"{{000000..{len(paths) - 1:06d}}}" if len(paths) > 1 else "000000"
    return PackSummary(len(paths), written, len(packed), num_bytes, str(out / f"videos-{numbers}.tar"))
