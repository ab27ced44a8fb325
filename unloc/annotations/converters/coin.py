"""COIN (AS): one object `database`; the steps of every video, each with an id that is unique over all tasks."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, require_split
from unloc.annotations.problems import Problems
from unloc.annotations.schema import InstanceRow, Manifest, VideoRow, build_manifest
from unloc.annotations.values import Name, Segment, parse_json, read_text, typed
from unloc.recipes import dataset_description


@dataclass(frozen=True)
class _Step:
    id: Name
    label: Name
    segment: Segment

    def __post_init__(self) -> None:
        if not self.id.isdecimal():
            raise ValueError(f"id must be a whole number, got {self.id!r}")


@dataclass(frozen=True)
class _Video:
    subset: Name
    class_: Name
    duration: float
    annotation: list[_Step]


@dataclass(frozen=True)
class _File:
    database: dict[str, _Video]


def convert(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All videos and steps as written; `split` keeps one subset. Classes in the order of the official step ids.

    For COIN itself these are the 778 steps of its taxonomy, whichever of them the files show; for another dataset in
    its format, the steps of the files. A step name shared by several ids carries its task, as `name (Task)`: ids are
    the classes. An official split file among the paths (video id to subset) tells which videos lack annotations.
    """
    videos: dict[str, _Video] = {}
    listed: dict[str, str] = {}
    steps: dict[str, tuple[str, str]] = {}  # id to (label, task), as first seen
    for path in files_below(paths, "coin*.json", "*.json", but="coin_test_without*.json"):
        content = parse_json(read_text(path), str(path), problems)
        if isinstance(content, dict) and content and all(isinstance(value, str) for value in content.values()):
            listed |= content
            continue
        found = typed(_File, content, str(path)).database
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
    names = _class_names(_with_taxonomy(steps, problems), problems)
    rows: list[VideoRow | InstanceRow] = []
    for video_id, video in videos.items():
        if split in (None, video.subset):
            rows.append(VideoRow(video_id, video.subset, video.duration))
            rows += [InstanceRow(video_id, video.subset, names[step.id], step.segment) for step in video.annotation]
    classes = [names[step_id] for step_id in sorted(names, key=int)]
    return build_manifest(name="coin", tasks=("as",), classes=classes, source="COIN", rows=rows)


def _with_taxonomy(steps: dict[str, tuple[str, str]], problems: Problems) -> dict[str, tuple[str, str]]:
    """All steps of COIN's taxonomy where most of these are its steps; else these alone."""
    described = dataset_description("coin")["steps"]
    official = {str(key): (label, task) for task, labels in described.items() for key, label in labels.items()}
    other = [key for key, (label, _) in steps.items() if label != official.get(key, ("",))[0]]
    if 2 * len(other) >= len(steps):
        return steps
    for key in other:
        problems.add("step id with another name than in COIN's taxonomy: the taxonomy's is used", f"step {key}")
    return steps | official


def _class_names(steps: dict[str, tuple[str, str]], problems: Problems) -> dict[str, str]:
    """Step id to class name, unique: with the task, and the id where even that is not enough."""
    ids = defaultdict(list)
    for step_id, (label, _) in steps.items():
        ids[label].append(step_id)
    names = {}
    for step_id, (label, task) in steps.items():
        if len(ids[label]) == 1:
            names[step_id] = label
            continue
        same_task = sum(steps[other][1] == task for other in ids[label]) > 1
        names[step_id] = f"{label} ({task} {step_id})" if same_task else f"{label} ({task})"
        problems.add("step name shared by several ids: its task added", f"step {step_id}: {names[step_id]!r}")
    return names
