"""Where the file of each video lies in a folder."""

from pathlib import Path

from unloc.data.schema import Manifest
from unloc.errors import MissingError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".3gp", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")


def index_folder(folder: Path) -> dict[str, Path]:
    """Files below a folder by name and by stem (the first in sorted order where several share one).

    Raises MissingError where the folder does not exist.
    """
    if not folder.is_dir():
        raise MissingError(f"--videos: folder {folder} does not exist")
    found: dict[str, Path] = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        relative = path.relative_to(folder).as_posix()
        found.setdefault(relative, path)
        found.setdefault(path.name, path)
        if path.suffix.lower() in EXTENSIONS:
            found.setdefault(path.stem, path)
    return found


def find_video_file(index: dict[str, Path], video_id: str, file: str | None = None) -> Path | None:
    """The file that the manifest names, else one named like the id, with or without ActivityNet's `v_`; or None."""
    if isinstance(file, str):
        return index.get(file)
    bare = video_id.removeprefix("v_")
    for name in (video_id, bare, f"v_{bare}"):
        if name in index:
            return index[name]
    return None


def locate_videos(manifest: Manifest, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """(file of each video id in the manifest's order, ids without a file). A video of several splits counts once."""
    index = index_folder(folder)
    files, missing = {}, []
    for row in manifest.videos.drop_duplicates("video_id").to_dict("records"):
        path = find_video_file(index, row["video_id"], row["file"])
        if path is None:
            missing.append(row["video_id"])
        else:
            files[row["video_id"]] = path
    return files, missing
