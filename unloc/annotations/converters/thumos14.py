"""THUMOS14 (TAL) in ActionFormer's JSON; subsets Validation (used for training) and Test, in lower case here."""

from pathlib import Path

from unloc.annotations.database import detection_manifest
from unloc.annotations.official import Repairs, a_name, files_below
from unloc.annotations.schema import Manifest
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All videos and instances, as written; `split` keeps one subset. Classes alphabetical, like the official ids.

    Subsets in lower case, as ActionFormer compares them. 30 official instances start after the end of their video;
    they are kept: the official scorers count them.
    """
    files, split = files_below(paths, "thumos*.json", "*.json"), split.lower() if split else split
    return detection_manifest(files, split, repairs, _subset, name="thumos14", source="THUMOS14")


def _subset(entry: dict, place: str, repairs: Repairs) -> str:
    subset = a_name(entry, "subset", place)
    if subset in ("training", "testing"):
        raise ManifestError(f"{place}: subset {subset!r} is ActivityNet's spelling; convert it as activitynet")
    if subset != subset.lower():
        repairs.add(f"subset {subset!r}: written {subset.lower()!r}", place)
    return subset.lower()
