"""ActivityNet 1.3, and THUMOS14 in ActionFormer's JSON (TAL): one object `database` of videos, with their subsets."""

from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, require_split
from unloc.annotations.problems import Problems
from unloc.annotations.schema import InstanceRow, Manifest, VideoRow, build_manifest
from unloc.annotations.values import Name, Segment, parse_json, read_text, typed
from unloc.errors import ManifestError


@dataclass(frozen=True)
class _Instance:
    label: Name
    segment: Segment


@dataclass(frozen=True)
class _Video:
    subset: Name
    duration: float
    annotations: list[_Instance]


@dataclass(frozen=True)
class _File:
    database: dict[str, _Video]


def activitynet(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """Subsets training, validation, testing."""
    files = files_below(paths, "activity*net*.json", "*.json")
    return _convert(files, split, problems, "activitynet", "ActivityNet 1.3", foreign=("Test", "Validation"))


def thumos14(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """Subsets Validation (used for training) and Test, in lower case as ActionFormer compares them.

    30 official instances start after the end of their video; they are kept, since the official scorers count them.
    """
    files, split = files_below(paths, "thumos*.json", "*.json"), split.lower() if split else split
    return _convert(files, split, problems, "thumos14", "THUMOS14", foreign=("training", "testing"))


def _convert(
    files: list[Path], split: str | None, problems: Problems, name: str, source: str, foreign: tuple[str, str]
) -> Manifest:
    """All videos and instances as written; `split` keeps one subset, `foreign` are subsets of the other dataset.

    Classes alphabetically, like the official ids: the labels of all subsets, and the leaves of a taxonomy.
    """
    rows, labels, subsets = [], set(), []
    for path in files:
        content = parse_json(read_text(path), str(path), problems)
        videos = typed(_File, content, str(path)).database
        labels |= _taxonomy_leaves(content)
        for video_id, video in videos.items():
            place, subset = f"{path}: database[{video_id!r}]", video.subset
            if subset in foreign:
                other = "thumos14" if name == "activitynet" else "activitynet"
                raise ManifestError(f"{place}: subset {subset!r} is the spelling of {other}; convert it as {other}")
            if name == "thumos14" and subset != subset.lower():
                problems.add(f"subset {subset!r}: written {subset.lower()!r}", place)
                subset = subset.lower()
            subsets.append(subset)
            labels |= {item.label for item in video.annotations}
            if split in (None, subset):
                rows.append(VideoRow(video_id, subset, video.duration))
                rows += [InstanceRow(video_id, subset, item.label, item.segment) for item in video.annotations]
    require_split(split, subsets, files[0])
    return build_manifest(name=name, tasks=("tal",), classes=sorted(labels), source=source, rows=rows)


def _taxonomy_leaves(content: dict) -> set[str]:
    """Names of the taxonomy's nodes that are no other's parent: all classes, also those that no video here shows."""
    taxonomy = content.get("taxonomy")
    nodes = [node for node in taxonomy if isinstance(node, dict)] if isinstance(taxonomy, list) else []
    names, parents = (
        {node[key] for node in nodes if isinstance(node.get(key), str) and node[key].strip()}
        for key in ("nodeName", "parentName")
    )
    return names - parents
