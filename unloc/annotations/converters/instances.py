"""ActivityNet 1.3 and THUMOS14 in ActionFormer's JSON (TAL), COIN (AS): a `database` of videos with their subsets."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, require_split
from unloc.annotations.problems import Problems
from unloc.annotations.schema import InstanceRow, Manifest, VideoRow, build_manifest
from unloc.annotations.values import Name, Segment, read_json, typed
from unloc.errors import ManifestError
from unloc.recipes import dataset_description


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
    taxonomy: object = None


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

    Classes alphabetically, like the official ids: the labels of all subsets, and the leaves of a taxonomy (nodes that
    are no other's parent), also those that no video here shows.
    """
    rows, labels, subsets = [], set(), []
    for path in files:
        content = read_json(_File, path, problems)
        nodes = content.taxonomy if isinstance(content.taxonomy, list) else []
        names, parents = (
            {node[key] for node in nodes if isinstance(node, dict) and isinstance(node.get(key), str)}
            for key in ("nodeName", "parentName")
        )
        labels |= {name for name in names - parents if name.strip()}
        for video_id, video in content.database.items():
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


@dataclass(frozen=True)
class _Step(_Instance):
    id: Name

    def __post_init__(self) -> None:
        if not self.id.isdecimal():
            raise ValueError(f"id must be a whole number, got {self.id!r}")


@dataclass(frozen=True)
class _StepsVideo:
    subset: Name
    class_: Name
    duration: float
    annotation: list[_Step]


@dataclass(frozen=True)
class _StepsFile:
    database: dict[str, _StepsVideo]


def coin(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All videos and steps as written; `split` keeps one subset. Classes in the order of the official step ids.

    For COIN itself these are the 778 steps of its taxonomy, whichever of them the files show; for another dataset in
    its format, the steps of the files. A step name shared by several ids carries its task, as `name (Task)`: ids are
    the classes. An official split file among the paths (video id to subset) tells which videos lack annotations.
    """
    videos: dict[str, _StepsVideo] = {}
    listed: dict[str, str] = {}
    steps: dict[str, tuple[str, str]] = {}  # id to (label, task), as first seen
    for path in files_below(paths, "coin*.json", "*.json", but="coin_test_without*.json"):
        content = read_json(object, path, problems)
        if isinstance(content, dict) and content and all(isinstance(value, str) for value in content.values()):
            listed |= content
            continue
        found = typed(_StepsFile, content, str(path)).database
        videos |= found
        for video_id, video in found.items():
            for number, step in enumerate(video.annotation):
                if steps.setdefault(step.id, (step.label, video.class_)) != (step.label, video.class_):
                    kind = "step id with another name or task than at its first use: the first is used"
                    problems.add(kind, f"{path}: database[{video_id!r}].annotation[{number}]")
    require_split(split, [video.subset for video in videos.values()], paths[0])
    for video_id, subset in listed.items():
        if video_id not in videos and split in (None, subset):
            problems.add(f"coverage gap: {subset} video of the official split file without annotations", video_id)
    names = _class_names(steps, problems)
    rows: list[VideoRow | InstanceRow] = []
    for video_id, video in videos.items():
        if split in (None, video.subset):
            rows.append(VideoRow(video_id, video.subset, video.duration))
            rows += [InstanceRow(video_id, video.subset, names[step.id], step.segment) for step in video.annotation]
    classes = [names[step_id] for step_id in sorted(names, key=int)]
    return build_manifest(name="coin", tasks=("as",), classes=classes, source="COIN", rows=rows)


def _class_names(steps: dict[str, tuple[str, str]], problems: Problems) -> dict[str, str]:
    """Step id to class name, unique: with the task where ids share a name, and the id where even that is not enough.

    All steps of COIN's taxonomy where most of these are its steps; else these alone.
    """
    described = dataset_description("coin")["steps"]
    official = {str(key): (label, task) for task, labels in described.items() for key, label in labels.items()}
    other = [key for key, (label, _) in steps.items() if label != official.get(key, ("",))[0]]
    if 2 * len(other) < len(steps):
        steps = steps | official
        for key in other:
            problems.add("step id with another name than in COIN's taxonomy: the taxonomy's is used", f"step {key}")
    names, labels, tasks = {}, Counter(label for label, _ in steps.values()), Counter(steps.values())
    for step_id, (label, task) in steps.items():
        names[step_id] = label
        if labels[label] > 1:
            names[step_id] = f"{label} ({task} {step_id})" if tasks[label, task] > 1 else f"{label} ({task})"
            problems.add("step name shared by several ids: its task added", f"step {step_id}: {names[step_id]!r}")
    return names
