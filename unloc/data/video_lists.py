"""Lists of video ids: blocked ones (gone from the web, left out by a paper's code) or the only ones to keep."""

import csv
import io
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from unloc.data.official import Repairs, read_json, read_text
from unloc.data.schema import Manifest
from unloc.errors import ManifestError, MissingError

_ID_COLUMNS = ("video_id", "video", "video_name", "video-id", "vid", "id", "name")


def read_video_list(path: Path) -> frozenset[str]:
    """The ids of a list: JSON (a list, or an object keyed by id), a csv with a column of ids, or text, id first a line.

    ActivityNet's `v_` before an id is taken off, and ids that stand twice count once. Raises MissingError where the
    file is absent, ManifestError where it is no such list.
    """
    if not path.is_file():
        raise MissingError(f"list of videos {path} does not exist")
    suffix = path.suffix.lower()
    if suffix == ".json":
        ids = _of_json(path)
    elif suffix == ".csv":
        ids = _of_csv(path)
    else:
        ids = [line.split()[0] for line in read_text(path).split("\n") if line.strip()]
    found = frozenset(_bare(video_id.strip()) for video_id in ids)
    if not found:
        raise ManifestError(f"{path}: no video id in this list")
    return found


def _bare(video_id: str) -> str:
    return video_id.removeprefix("v_")


def _of_json(path: Path) -> list[str]:
    content = read_json(path, Repairs())
    ids = list(content) if isinstance(content, dict | list) else []
    if not ids or not all(isinstance(video_id, str) for video_id in ids):
        raise ManifestError(f"{path}: expected a list of video ids or an object keyed by them")
    return ids


def _of_csv(path: Path) -> list[str]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    column = next((name for name in _ID_COLUMNS if name in (reader.fieldnames or ())), None)
    if column is None:
        raise ManifestError(f"{path}:1: no column of ids; expected one of {', '.join(_ID_COLUMNS)}")
    return [row[column] for row in reader if row[column]]


def without_videos(manifest: Manifest, video_ids: Collection[str]) -> Manifest:
    """The manifest without these videos and what is annotated in them; `v_` before an id does not count."""
    listed = frozenset(map(_bare, video_ids))
    return _filtered(manifest, lambda video_id: _bare(video_id) not in listed)


def only_videos(manifest: Manifest, video_ids: Collection[str]) -> Manifest:
    """The manifest with these videos only and what is annotated in them; `v_` before an id does not count."""
    listed = frozenset(map(_bare, video_ids))
    return _filtered(manifest, lambda video_id: _bare(video_id) in listed)


def _filtered(manifest: Manifest, keep: Callable[[str], bool]) -> Manifest:
    tables = {key: getattr(manifest, key) for key in ("videos", "queries", "instances")}
    kept = {key: table[table["video_id"].map(keep).astype(bool)] for key, table in tables.items()}
    return replace(manifest, **{key: table.reset_index(drop=True) for key, table in kept.items()})
