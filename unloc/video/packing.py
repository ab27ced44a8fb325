"""A folder of videos into WebDataset tar shards: few large files in place of many small ones.

Which video goes into which shard follows from the manifest's order and the sizes alone, times are kept and owners left
out: the same videos give the same bytes. A shard appears whole or not at all, and one that stands is not written again.
"""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unloc.errors import InputError
from unloc.files import replacing

SHARD_NAME = "videos-{:06d}.tar"
BLOCK = 512  # what a header takes, and what contents are rounded up to


@dataclass(frozen=True)
class PackedVideo:
    """A file and its name in a shard."""

    name: str
    file: Path

    def to_member(self) -> tarfile.TarInfo:
        """Its header: name, size and time, nothing that differs between users."""
        stat, member = self.file.stat(), tarfile.TarInfo(self.name)
        member.size, member.mtime, member.mode = stat.st_size, int(stat.st_mtime), 0o644
        return member


@dataclass(frozen=True)
class PackSummary:
    """What was packed."""

    shards: int
    written_now: int
    videos: int
    bytes: int
    pattern: str
    """What `unloc extract --shards` takes."""


def pack_videos(
    videos: pd.DataFrame,
    files: dict[str, Path],
    out: Path,
    *,
    shard_bytes: int = 1 << 30,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write a manifest's `videos`, found as `files`, into OUT/videos-000000.tar and so on.

    A shard holds at most `shard_bytes` of videos, or one video that is larger. Raises InputError where there is nothing
    to pack, or OUT has shards of other videos.
    """
    packed = _named(videos, files)
    if not packed:
        raise InputError(f"{out}: no video of the manifest was found; nothing is packed")
    shards = _split(packed, shard_bytes)
    out.mkdir(parents=True, exist_ok=True)
    _refuse_strays(out, len(shards))
    written = 0
    for number, shard in enumerate(shards):
        written += _write_if_absent(out / SHARD_NAME.format(number), shard)
        if on_progress:
            on_progress(number + 1, len(shards))
    size = sum(video.file.stat().st_size for video in packed)
    return PackSummary(len(shards), written, len(packed), size, _pattern(out, len(shards)))


def _named(videos: pd.DataFrame, files: dict[str, Path]) -> list[PackedVideo]:
    """Videos by the name under which `unloc extract` will look for them: the manifest's file, else their id."""
    table = videos.drop_duplicates("video_id")
    stated = dict(zip(table["video_id"], table["file"], strict=True))
    packed = []
    for video_id, file in files.items():
        if not isinstance(file, Path):
            raise InputError(f"{file}: only files in a folder are packed; copy it first, or extract from its URL")
        if isinstance(stated[video_id], str):
            packed.append(PackedVideo(Path(stated[video_id]).as_posix(), file))
        elif "/" in video_id:
            raise InputError(f"video {video_id!r}: its id has a slash; name its file in the manifest")
        else:
            packed.append(PackedVideo(f"{video_id}{file.suffix}", file))
    return list({video.name: video for video in packed}.values())


def _split(videos: Sequence[PackedVideo], shard_bytes: int) -> list[list[PackedVideo]]:
    shards: list[list[PackedVideo]] = []
    room = 0
    for video in videos:
        size = BLOCK + -(-video.file.stat().st_size // BLOCK) * BLOCK
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(video)
        room -= size
    return shards


def _refuse_strays(out: Path, num_shards: int) -> None:
    wanted = {SHARD_NAME.format(number) for number in range(num_shards)}
    strays = sorted(item.name for item in out.glob("videos-*.tar") if item.name not in wanted)
    if strays:
        raise InputError(f"{out}: has shards of another packing (first: {strays[0]}); pack into a new folder")


def _write_if_absent(path: Path, videos: Sequence[PackedVideo]) -> bool:
    members = [video.to_member() for video in videos]
    if path.is_file():
        if _headers(path) != [(item.name, item.size, item.mtime) for item in members]:
            raise InputError(f"{path}: holds other videos than this packing puts there; pack into a new folder")
        return False
    with replacing(path) as part, tarfile.open(part, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, video in zip(members, videos, strict=True):
            with video.file.open("rb") as source:
                tar.addfile(member, source)
    return True


def _headers(path: Path) -> list[tuple[str, int, float]] | None:
    try:
        with tarfile.open(path, "r:") as tar:
            return [(item.name, item.size, item.mtime) for item in tar]
    except tarfile.ReadError:
        return None


def _pattern(out: Path, num_shards: int) -> str:
    if num_shards == 1:
        return str(out / SHARD_NAME.format(0))
    return str(out / SHARD_NAME.replace("{:06d}", f"{{{0:06d}..{num_shards - 1:06d}}}"))
