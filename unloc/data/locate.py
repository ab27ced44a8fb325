"""Where the file of each video lies in a folder, and how well a folder covers a manifest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from unloc.data.schema import Manifest
from unloc.data.tar_shards import TarMember, shard_members
from unloc.errors import MissingError

File = TypeVar("File", Path, TarMember)

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".3gp", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")


def video_files(folder: Path) -> list[Path]:
    """Files below a folder that a video's row may name, those with a video's extension first, in `EXTENSIONS` order.

    Within an extension the least nested come first, then by name. Raises MissingError where the folder does not exist.
    """
    if not folder.is_dir():
        raise MissingError(f"--videos: folder {folder} does not exist")
    return sorted((item for item in folder.rglob("*") if item.is_file()), key=_preference)


def _preference(path: PurePath) -> tuple[int, int, str]:
    suffix = path.suffix.lower()
    rank = EXTENSIONS.index(suffix) if suffix in EXTENSIONS else len(EXTENSIONS)
    return rank, len(path.parts), str(path)


def index_folder(folder: Path) -> dict[str, Path]:
    """Files below a folder by path, by name and by stem; of several that share one, the first of `video_files`.

    Raises MissingError where the folder does not exist.
    """
    return _index(folder, video_files(folder))


def _index(folder: Path, files: list[Path]) -> dict[str, Path]:
    return _by_names((path.relative_to(folder), path) for path in files)


def _by_names(files: Iterable[tuple[PurePath, File]]) -> dict[str, File]:
    """Files by the path they have been given, by its name and, of a video, by its stem; the first of several counts."""
    exact, loose = {}, {}
    for path, file in files:
        exact[path.as_posix()] = file
        loose.setdefault(path.name, file)
        if path.suffix.lower() in EXTENSIONS:
            loose.setdefault(path.stem, file)
    return loose | exact


def find_video_file(index: dict[str, File], video_id: str, file: str | None = None) -> File | None:
    """The file that the manifest names, else one named like the id, with or without ActivityNet's `v_`; or None.

    A named file must be there: another one that happens to be called like the id is not taken for it.
    """
    if isinstance(file, str):
        return index.get(Path(file).as_posix())
    bare = video_id.removeprefix("v_")
    for name in (video_id, bare, f"v_{bare}"):
        if name in index:
            return index[name]
    return None


def locate_videos(manifest: Manifest, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """(file of each video id in the manifest's order, ids without a file). A video of several splits counts once.

    Raises MissingError where the folder does not exist.
    """
    return locate_files(manifest, index_folder(folder))


def locate_in_shards(manifest: Manifest, pattern: str) -> tuple[dict[str, TarMember], list[str]]:
    """The same for videos in tar files: `videos-{000..127}.tar`. Raises as `tar_shards.shard_members` does."""
    return locate_files(manifest, index_shards(pattern))


def index_shards(pattern: str) -> dict[str, TarMember]:
    """What `index_folder` is for a folder, for tar files. Raises as `tar_shards.shard_members` does."""
    members = sorted(shard_members(pattern).values(), key=lambda member: _preference(PurePath(member.path)))
    return _by_names((PurePath(member.path), member) for member in members)


def locate_files(manifest: Manifest, index: dict[str, File]) -> tuple[dict[str, File], list[str]]:
    """(file of each video id in the manifest's order, ids without one), of the files in an index."""
    files, missing = {}, []
    videos = manifest.videos.drop_duplicates("video_id")
    for video_id, file in zip(videos["video_id"], videos["file"], strict=True):
        path = find_video_file(index, video_id, file)
        if path is None:
            missing.append(video_id)
        else:
            files[video_id] = path
    return files, missing


@dataclass(frozen=True)
class Coverage:
    """What a folder holds of a manifest's videos."""

    found: dict[str, Path]
    """File of each video that has one."""
    missing: list[str]
    """Ids without a file."""
    empty: list[str]
    """Ids whose file has no bytes."""
    shared: list[str]
    """Ids whose file an earlier id has too."""
    extra: list[Path]
    """Video files of the folder that no row names, in order of their path."""


def folder_coverage(manifest: Manifest, folder: Path) -> Coverage:
    """How well a folder covers a manifest; files are not opened. Raises MissingError where there is no such folder."""
    files = video_files(folder)
    found, missing = locate_files(manifest, _index(folder, files))
    used: set[Path] = set()
    shared = []
    for video_id, path in found.items():
        if path in used:
            shared.append(video_id)
        used.add(path)
    extra = sorted(path for path in files if path not in used and path.suffix.lower() in EXTENSIONS)
    empty = [video_id for video_id, path in found.items() if path.stat().st_size == 0]
    return Coverage(found=found, missing=missing, empty=empty, shared=shared, extra=extra)
