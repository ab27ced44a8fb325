"""ActivityNet 1.3 (TAL): one JSON with `database`; subsets training, validation, testing."""

from pathlib import Path

from unloc.annotations.database import detection_manifest
from unloc.annotations.official import Repairs, a_name, files_below
from unloc.annotations.schema import Manifest
from unloc.errors import ManifestError

_THUMOS_SUBSETS = ("Test", "Validation")


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All videos and instances, as written; `split` keeps one subset. Classes alphabetical, from all subsets."""
    files = files_below(paths, "activity*net*.json", "*.json")
    return detection_manifest(files, split, repairs, _subset, name="activitynet", source="ActivityNet 1.3")


def _subset(entry: dict, place: str, repairs: Repairs) -> str:
    subset = a_name(entry, "subset", place)
    if subset in _THUMOS_SUBSETS:
        raise ManifestError(f"{place}: subset {subset!r} is THUMOS14's spelling; convert it as thumos14")
    return subset
