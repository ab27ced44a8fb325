"""Lists of video ids: blocked ones (gone from the web, left out by a paper's code) or the only ones to keep."""

import csv
import io
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from unloc.annotations.official import Repairs, read_json, read_text
from unloc.annotations.schema import Manifest
from unloc.errors import ManifestError, MissingError

_ID_COLUMNS = ("video_id", "video", "video_name", "video-id", "vid", "id", "name")


def read_video_list(path: Path) -> frozenset[str]:
    """The ids of a list: JSON, a csv with a column of ids, or text, id first a line.

    JSON is a list of ids, an object keyed by id, or an object of lists of ids (as one list a split).

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
    if isinstance(content, dict) and ids and all(isinstance(one, list) for one in content.values()):
        nested = [video_id for one in content.values() for video_id in one]
        ids = nested if nested and all(isinstance(video_id, str) for video_id in nested) else ids
    if not ids or not all(isinstance(video_id, str) for video_id in ids):
        raise ManifestError(f"{path}: expected a list of video ids or an object keyed by them")
    return ids


def _of_csv(path: Path) -> list[str]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    column = next((name for name in _ID_COLUMNS if name in (reader.fieldnames or ())), None)
    if column is None:
        raise ManifestError(f"{path}:1: no column of ids; expected one of {', '.join(_ID_COLUMNS)}")
    return [row[column] for row in reader if row[column]]


def listed_filter(without: Iterable[Path], only: Iterable[Path]) -> Callable[[str], bool]:
    """Whether a video is in all lists of `only` and in none of `without`; `v_` before an id does not count."""
    blocked, kept = ([read_video_list(path) for path in paths] for paths in (without, only))

    def keep(video_id: str) -> bool:
        bare = _bare(video_id)
        return all(bare in ids for ids in kept) and not any(bare in ids for ids in blocked)

    return keep


def without_videos(manifest: Manifest, video_ids: Collection[str]) -> Manifest:
    """The manifest without these videos and what is annotated in them; `v_` before an id does not count."""
    listed = frozenset(map(_bare, video_ids))
    return restricted(manifest, lambda video_id: _bare(video_id) not in listed)


def only_videos(manifest: Manifest, video_ids: Collection[str]) -> Manifest:
    """The manifest with these videos only and what is annotated in them; `v_` before an id does not count."""
    listed = frozenset(map(_bare, video_ids))
    return restricted(manifest, lambda video_id: _bare(video_id) in listed)


def restricted(manifest: Manifest, keep: Callable[[str], bool], split: str | None = None) -> Manifest:
    """The manifest with those videos that are kept and what is annotated in them; with `split` the others stay."""
    parts = {}
    for name in ("videos", "queries", "instances"):
        table = getattr(manifest, name)
        kept = table["video_id"].map(keep).astype(bool) | (split is not None and table["split"] != split)
        parts[name] = table[kept].reset_index(drop=True)
    return replace(manifest, **parts)
