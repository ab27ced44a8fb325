"""Which file of a folder, a URL or tar shards belongs to each video, and how well a folder covers a manifest."""

import logging
import os
import tarfile
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import pandas as pd

from unloc.cache.object_store import ObjectStore
from unloc.errors import InputError, MissingError
from unloc.files import url_of
from unloc.video.video_file import RemoteVideo, TarMember, VideoFile

logger = logging.getLogger(__name__)
EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".3gp", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")


class VideoIndex:
    """Files found by their path or name or, of a video, by their stem; the first of several is taken."""

    def __init__(self, files: Iterable[tuple[PurePath, VideoFile]], root: Path | str | None = None) -> None:
        """files with their paths below root; root: the folder or URL, for manifests that name files by a whole path."""
        exact, loose = {}, {}
        for path, file in sorted(files, key=lambda item: _preference(item[0])):
            exact[path.as_posix()] = file
            loose.setdefault(path.name, file)
            if path.suffix.lower() in EXTENSIONS:
                loose.setdefault(path.stem, file)
        self.files, self.root = loose | exact, root

    def find(self, video_id: str, file: str | None = None) -> VideoFile | None:
        """The file that the manifest names, by a path below the root, an absolute path into it, or a URL; or None. Only
        where it names none, one named like the id, with or without ActivityNet's `v_`.
        """
        if not isinstance(file, str):
            bare = video_id.removeprefix("v_")
            return next((self.files[name] for name in (video_id, bare, f"v_{bare}") if name in self.files), None)
        if url := url_of(file):
            listed = self.files.get(url.removeprefix(f"{self.root}/"))
            with suppress(FileNotFoundError):
                return listed or RemoteVideo.at(*url.rsplit("/", 1))
            return None
        if not isinstance(self.root, Path) or "\0" in file:
            return self.files.get(Path(file).as_posix())
        for root, path in ((self.root.absolute(), file), (os.path.realpath(self.root), os.path.realpath(file))):
            name = os.path.relpath(path, root) if Path(file).is_absolute() else Path(file).as_posix()
            if name in self.files:
                return self.files[name]
            # A folder with several paths (links) was walked by one of them only.
            if ".." not in Path(name).parts and os.path.isfile(self.root / name):  # noqa: PTH113
                return self.root / name
        return None

    def locate(self, videos: pd.DataFrame) -> tuple[dict[str, VideoFile], list[str]]:
        """(file of each video id, in the order of a manifest's `videos`; ids without a file)."""
        videos = videos.drop_duplicates("video_id")
        found = {key: self.find(key, file) for key, file in zip(videos["video_id"], videos["file"], strict=True)}
        missing = [video_id for video_id, file in found.items() if file is None]
        return {video_id: file for video_id, file in found.items() if file is not None}, missing


def _preference(path: PurePath) -> tuple[int, int, str]:
    """Videos first, in the order of EXTENSIONS, then the least nested, then by name."""
    suffix = path.suffix.lower()
    rank = EXTENSIONS.index(suffix) if suffix in EXTENSIONS else len(EXTENSIONS)
    return rank, len(path.parts), str(path)


def index_videos(folder: Path | str | None = None, shards: str | None = None) -> VideoIndex:
    """Files below a folder or a URL, or in tar files. Raises MissingError where there is none, as `shard_members`."""
    if folder is None:
        return VideoIndex((PurePath(name), file) for name, file in (shard_members(shards) if shards else {}).items())
    if url := url_of(folder):
        found = [RemoteVideo.at(url, name, info) for name, info in ObjectStore(url).infos().items()]
        if not found:
            raise MissingError(f"--videos: {url} does not exist or holds nothing")
        # A web server's list of links has no sizes.
        files = (file if file.size is not None else RemoteVideo.at(url, file.path) for file in found)
        return VideoIndex(((file.place, file) for file in files), url)
    folder = Path(str(folder).removeprefix("file:"))
    return VideoIndex(((path.relative_to(folder), path) for path in video_files(folder)), folder)


def video_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted by `_preference`; links are followed. Raises MissingError."""
    if not folder.is_dir():
        raise MissingError(f"--videos: folder {folder} does not exist")

    def warn(error: OSError) -> None:
        place = str(error.filename)[:200]
        logger.warning("%s: cannot be listed (%s); videos below it count as missing", place, error.strerror)

    found, seen, roots = [], set(), deque([str(folder)])
    while roots:  # links come after all folders that are reached without them
        for current, folders, names in os.walk(roots.popleft(), onerror=warn):
            stat = Path(current).stat()
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            # Unlike Path's, these methods raise no error for a path that is too long.
            found += [Path(path) for name in names if os.path.isfile(path := f"{current}/{name}")]  # noqa: PTH113
            roots += [path for name in folders if os.path.islink(path := f"{current}/{name}")]  # noqa: PTH114
    return sorted(found, key=_preference)


def own_videos(names: Iterable[Path | str]) -> list[VideoFile]:
    """The files that names stand for: files, folders of videos (also at URLs, and below them), in the order given.
    Raises MissingError where a name stands for none, InputError where two different files have one name without ending.
    """
    found: dict[VideoFile, None] = {}
    for name in names:
        url, path = url_of(name), Path(str(name).removeprefix("file:"))
        if url is None and not path.is_dir():
            if not path.exists():
                raise MissingError(f"{name}: no such video; give a file, a folder, or a URL")
            found[path] = None
            continue
        files = []
        if url is not None and PurePosixPath(url).suffix.lower() in EXTENSIONS:
            with suppress(FileNotFoundError):
                files = [RemoteVideo.at(*url.rsplit("/", 1))]
        elif url is not None or any(path.iterdir()):
            index = index_videos(name)
            files = [file for key, file in index.files.items() if PurePosixPath(key).suffix.lower() in EXTENSIONS]
        if not files:
            raise MissingError(f"{name}: no video here; its name would end in {', '.join(EXTENSIONS)}")
        found |= dict.fromkeys(sorted(files, key=str))
    by_stem: dict[str, VideoFile] = {}
    for file in found:
        stem = PurePath(file.name).stem
        if (other := by_stem.setdefault(stem, file)) != file:
            raise InputError(f"{other} and {file}: two videos are called {stem}; rename one, or ask for one at a time")
    return list(found)


def expand_shards(pattern: str) -> list[Path]:
    """Paths of `videos-{000..127}.tar`, `videos-*.tar` or several joined by `::`. Raises InputError, MissingError."""
    from webdataset.shardlists import expand_urls  # here: it imports torch

    paths: list[Path] = []
    for name in expand_urls(pattern):
        if "://" in name:
            raise InputError(f"--shards: {name} is a URL; tar files are read in place: mount the bucket or copy them")
        path = Path(name)
        paths += (sorted(path.parent.glob(path.name)) if "*" in path.name else []) or [path]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingError(f"--shards: {len(missing)} of {len(paths)} tar files do not exist (first: {missing[0]})")
    return paths


def shard_members(pattern: str) -> dict[str, TarMember]:
    """Files in the tar files of a pattern by name, of a truncated one its first. Raises InputError and MissingError."""
    found: dict[str, TarMember] = {}
    for tar in expand_shards(pattern):
        count = 0
        try:
            with tarfile.open(tar, "r:") as opened:
                for item in opened:
                    count += 1
                    if not item.isreg():
                        continue
                    name = PurePosixPath(item.name).as_posix()
                    if name in found:
                        raise InputError(f"--shards: {name} is in {found[name].parent} and in {tar}; name one of them")
                    found[name] = TarMember(tar, name, item.size, int(item.mtime * 1e9), item.offset_data)
        except tarfile.ReadError as error:
            if not count:
                raise InputError(f"--shards: {tar} is no plain tar file ({error}); unpack compressed ones") from None
            logger.warning("%s is truncated after its file %d (%s); later files are missing", tar, count, error)
    return found


class Coverage(NamedTuple):
    """Which of a manifest's videos a folder holds."""

    found: dict[str, Path]  # file of each video that has one
    missing: list[str]  # ids without a file
    empty: list[str]  # ids whose file has no bytes
    shared: list[str]  # ids whose file an earlier id has too
    extra: list[Path]  # video files of the folder that no row names, sorted


def folder_coverage(videos: pd.DataFrame, folder: Path) -> Coverage:
    """How well a folder covers a manifest, without opening files. Raises MissingError where there is no such folder."""
    files = video_files(folder)
    found, missing = VideoIndex(((path.relative_to(folder), path) for path in files), folder).locate(videos)
    first: dict[Path, str] = {}
    shared = [video_id for video_id, path in found.items() if first.setdefault(path.resolve(), video_id) != video_id]
    extra = sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.resolve() not in first)
    empty = [video_id for video_id, path in found.items() if path.stat().st_size == 0]
    return Coverage(found, missing, empty, shared, extra)
