"""THUMOS14 (TAL) in ActionFormer's JSON; subsets Validation (used for training) and Test, in lower case here."""

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


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All videos and instances, as written; `split` keeps one subset. Classes alphabetical, like the official ids.

    Subsets in lower case, as ActionFormer compares them. 30 official instances start after the end of their video;
    they are kept: the official scorers count them.
    """
    videos, instances, labels, subsets = [], [], set(), Counter()
    split = split.lower() if split else split
    for path in files_below(paths, "thumos*.json", "*.json"):
        for place, video_id, entry in read_database(path, "THUMOS14", repairs):
            subset = _subset(entry, place, repairs)
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
    rows = [*videos, *instances]
    return build_manifest(name="thumos14", tasks=("tal",), classes=sorted(labels), source="THUMOS14", rows=rows)


def _subset(entry: dict, place: str, repairs: Repairs) -> str:
    subset = a_text(entry, "subset", place)
    if subset in ("training", "testing"):
        raise ManifestError(f"{place}: subset {subset!r} is ActivityNet's spelling; convert it as activitynet")
    if subset != subset.lower():
        repairs.add(f"subset {subset!r}: written {subset.lower()!r}", place)
    return subset.lower()


def _instance(video_id: str, subset: str, item: object, place: str) -> dict:
    entry = an_object(item, place)
    start, end = a_segment(entry.get("segment"), f"{place}.segment")
    return instance_row(video_id, subset, a_text(entry, "label", place), start, end)
