"""ActivityNet 1.3 (TAL): one JSON with `database`; subsets training, validation, testing."""

from collections import Counter
from pathlib import Path

from unloc.data.official import (
    Repairs,
    a_list,
    a_segment,
    a_text,
    an_object,
    files_below,
    read_database,
    seconds,
    wanted_split,
)
from unloc.data.schema import Manifest, build_manifest, instance_row, video_row
from unloc.errors import ManifestError

_THUMOS_SUBSETS = ("Test", "Validation")


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All videos and instances, as written; `split` keeps one subset. Classes alphabetical, from all subsets."""
    videos, instances, labels, subsets = [], [], set(), Counter()
    for path in files_below(paths, "activity*net*.json", "*.json"):
        for place, video_id, entry in read_database(path, "ActivityNet", repairs):
            subset = a_text(entry, "subset", place)
            if subset in _THUMOS_SUBSETS:
                raise ManifestError(f"{place}: subset {subset!r} is THUMOS14's spelling; convert it as thumos14")
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
    wanted_split(split, subsets, paths)
    return build_manifest(
        name="activitynet",
        tasks=("tal",),
        classes=sorted(labels),
        source="ActivityNet 1.3",
        rows=[*videos, *instances],
    )


def _instance(video_id: str, subset: str, item: object, place: str) -> dict:
    entry = an_object(item, place)
    start, end = a_segment(entry.get("segment"), f"{place}.segment")
    return instance_row(video_id, subset, a_text(entry, "label", place), start, end)
