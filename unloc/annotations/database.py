"""Official files with a `database` of videos: ActivityNet, THUMOS14 and, with other annotations, COIN."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from unloc.annotations.official import Repairs, a_list, a_name, a_segment, an_object, read_json_object, seconds
from unloc.annotations.schema import Manifest, build_manifest, instance_row, video_row
from unloc.errors import ManifestError

Subset = Callable[[dict, str, Repairs], str]
"""(entry, place, repairs) to the split that the entry names."""


def database_entries(content: dict, path: Path, what: str) -> Iterator[tuple[str, str, dict]]:
    """(place, video id, entry) of the content of a file. Raises ManifestError where it has no `database`."""
    database = content.get("database")
    if not isinstance(database, dict):
        keys = ", ".join(map(repr, list(content)[:3])) or "nothing"
        raise ManifestError(f"{path}: no {what} file: it lacks the object `database`; it has {keys}")
    for video_id, entry in database.items():
        place = f"{path}: database[{video_id!r}]"
        yield place, video_id, an_object(entry, place)


def wanted_split(split: str | None, subsets: Counter[str], paths: list[Path]) -> None:
    """Raise ManifestError where a split is asked for that no video of the files is in."""
    if split is not None and split not in subsets:
        known = ", ".join(f"{name} ({count} videos)" for name, count in subsets.items()) or "no video at all"
        raise ManifestError(f"{paths[0]}: no video of split {split!r}; these annotations have {known}")


def detection_manifest(
    files: list[Path], split: str | None, repairs: Repairs, subset_of: Subset, *, name: str, source: str
) -> Manifest:
    """All videos and instances, as written; `split` keeps one subset.

    Classes alphabetical: the labels of all subsets, and the leaves of the taxonomy where the file has one.
    """
    videos, instances, labels, subsets = [], [], set(), Counter()
    for path in files:
        content = read_json_object(path, repairs)
        labels |= taxonomy_leaves(content)
        for place, video_id, entry in database_entries(content, path, source):
            subset = subset_of(entry, place, repairs)
            subsets[subset] += 1
            video = video_row(video_id, subset, seconds(entry, "duration", place))
            rows = [
                _instance(video_id, subset, item, f"{place}.annotations[{number}]")
                for number, item in enumerate(a_list(entry, "annotations", place))
            ]
            labels |= {row["label"] for row in rows}
            if split in (None, subset):
                videos.append(video)
                instances += rows
    wanted_split(split, subsets, files)
    rows = [*videos, *instances]
    return build_manifest(name=name, tasks=("tal",), classes=sorted(labels), source=source, rows=rows)


def taxonomy_leaves(content: dict) -> set[str]:
    """Names of the taxonomy's nodes that are no other's parent: all classes, also those that no video here shows."""
    taxonomy = content.get("taxonomy")
    nodes = [node for node in taxonomy if isinstance(node, dict)] if isinstance(taxonomy, list) else []
    parents = {node.get("parentName") for node in nodes if isinstance(node.get("parentName"), str)}
    names = {node.get("nodeName") for node in nodes if isinstance(node.get("nodeName"), str)}
    return {name for name in names - parents if name.strip()}


def _instance(video_id: str, subset: str, item: object, place: str) -> dict:
    entry = an_object(item, place)
    start, end = a_segment(entry.get("segment"), f"{place}.segment")
    return instance_row(video_id, subset, a_name(entry, "label", place), start, end)
