"""Where the file of each video lies in a folder, and how well a folder covers a manifest."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import pandas as pd

from unloc.errors import MissingError
from unloc.files import url_of
from unloc.video.remote_video import RemoteVideo, at_url, list_videos
from unloc.video.tar_shards import TarMember, VideoFile, shard_members

logger = logging.getLogger(__name__)
File = TypeVar("File", Path, TarMember, RemoteVideo)

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".3gp", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")
MAX_PATH_BYTES = 4095  # of Linux


class VideoIndex(dict[str, File]):
    """Files by the path they have been given, by its name and, of a video, by its stem; the first of several counts."""

    def __init__(self, files: Iterable[tuple[PurePath, File]], root: Path | str | None = None) -> None:
        """root: the folder or URL that the paths are relative to, if a manifest may name files by their whole path."""
        exact, loose = {}, {}
        for path, file in files:
            exact[path.as_posix()] = file
            loose.setdefault(path.name, file)
            if path.suffix.lower() in EXTENSIONS:
                loose.setdefault(path.stem, file)
        super().__init__(loose | exact)
        self.root = root

    def named(self, file: str) -> File | None:
        """The file that a manifest names: by its path in the folder, or from the system's root; or by a URL."""
        if url := url_of(file):
            inside = self.root is not None and url.startswith(f"{self.root}/")
            return (self.get(url.removeprefix(f"{self.root}/")) if inside else None) or at_url(url)
        if not isinstance(self.root, Path) or "\0" in file:
            return self.get(Path(file).as_posix())
        for root, path in ((self.root.absolute(), file), (os.path.realpath(self.root), os.path.realpath(file))):
            name = os.path.relpath(path, root) if Path(file).is_absolute() else Path(file).as_posix()
            if name in self:
                return self[name]
            # A folder that can be reached in two ways was walked in one of them only.
            if ".." not in Path(name).parts and os.path.isfile(self.root / name):  # noqa: PTH113 it takes any length
                return self.root / name
        return None


def video_files(folder: Path) -> list[Path]:
    """Files below a folder that a video's row may name, those with a video's extension first, in `EXTENSIONS` order.

    Links are followed, each folder is walked once. Within an extension the least nested come first, then by name.
    Raises MissingError where the folder does not exist.
    """
    if not folder.is_dir():
        raise MissingError(f"--videos: folder {folder} does not exist")
    found, seen, folders, links = [], set(), deque([str(folder)]), deque()
    while folders or links:
        current = folders.popleft() if folders else links.popleft()
        try:
            stat = Path(current).stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if _leads(entry, entry.is_dir):
                        (links if entry.is_symlink() else folders).append(entry.path)
                    elif len(os.fsencode(entry.path)) > MAX_PATH_BYTES:
                        logger.warning("%s…: the path is too long to be opened", entry.path[:100])
                    elif _leads(entry, entry.is_file):
                        found.append(Path(entry.path))
        except OSError as error:
            logger.warning("%s: cannot be listed (%s); videos below it count as missing", current[:200], error.strerror)
    return sorted(found, key=_preference)


def _leads(entry: os.DirEntry, is_kind: Callable[[], bool]) -> bool:
    try:
        return is_kind()
    except OSError as error:  # a link to itself, or into a place that cannot be entered
        logger.warning("%s: leads nowhere (%s)", entry.path[:200], error.strerror)
        return False


def _preference(path: PurePath) -> tuple[int, int, str]:
    suffix = path.suffix.lower()
    rank = EXTENSIONS.index(suffix) if suffix in EXTENSIONS else len(EXTENSIONS)
    return rank, len(path.parts), str(path)


def index_folder(folder: Path | str) -> VideoIndex:
    """Files below a folder, or a URL; of several that share a name, the first of `video_files`.

    Raises MissingError where the folder does not exist.
    """
    if url := url_of(folder):
        files = sorted(list_videos(url), key=lambda file: _preference(file.place))
        return VideoIndex(((file.place, file) for file in files), url)
    folder = Path(str(folder).removeprefix("file:")) if str(folder).startswith("file:/") else Path(folder)
    return _index(folder, video_files(folder))


def _index(folder: Path, files: list[Path]) -> VideoIndex:
    return VideoIndex(((path.relative_to(folder), path) for path in files), folder)


def find_video_file(index: VideoIndex, video_id: str, file: str | None = None) -> File | None:
    """The file that the manifest names, else one named like the id, with or without ActivityNet's `v_`; or None.

    A named file must be there: another one that happens to be called like the id is not taken for it.
    """
    if isinstance(file, str):
        return index.named(file)
    bare = video_id.removeprefix("v_")
    for name in (video_id, bare, f"v_{bare}"):
        if name in index:
            return index[name]
    return None


def locate_videos(videos: pd.DataFrame, folder: Path | str) -> tuple[dict[str, VideoFile], list[str]]:
    """(file of each video id, in the order of a manifest's `videos`, ids without a file). Of several splits one counts.

    The folder may be a URL. Raises MissingError where it does not exist.
    """
    return locate_files(videos, index_folder(folder))


def locate_in_shards(videos: pd.DataFrame, pattern: str) -> tuple[dict[str, TarMember], list[str]]:
    """The same for videos in tar files: `videos-{000..127}.tar`. Raises as `tar_shards.shard_members` does."""
    return locate_files(videos, index_shards(pattern))


def index_shards(pattern: str) -> VideoIndex:
    """What `index_folder` is for a folder, for tar files. Raises as `tar_shards.shard_members` does."""
    members = sorted(shard_members(pattern).values(), key=lambda member: _preference(PurePath(member.path)))
    return VideoIndex((PurePath(member.path), member) for member in members)


def locate_files(videos: pd.DataFrame, index: VideoIndex) -> tuple[dict[str, File], list[str]]:
    """(file of each video id in the manifest's order, ids without one), of the files in an index."""
    files, missing = {}, []
    videos = videos.drop_duplicates("video_id")
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

    @property
    def whole(self) -> dict[str, Path]:
        """Those found that have bytes."""
        return {video_id: path for video_id, path in self.found.items() if video_id not in self.empty}


def folder_coverage(videos: pd.DataFrame, folder: Path) -> Coverage:
    """How well a folder covers a manifest; files are not opened. Raises MissingError where there is no such folder."""
    files = video_files(folder)
    found, missing = locate_files(videos, _index(folder, files))
    used: set[Path] = set()
    shared = []
    for video_id, path in found.items():
        real = path.resolve()
        if real in used:
            shared.append(video_id)
        used.add(real)
    extra = sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.resolve() not in used)
    empty = [video_id for video_id, path in found.items() if path.stat().st_size == 0]
    return Coverage(found=found, missing=missing, empty=empty, shared=shared, extra=extra)
