"""COIN (AS): one JSON with `database`; every video's steps, each with an id of its own among all tasks."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.database import database_entries, wanted_split
from unloc.annotations.official import (
    Repairs,
    a_list,
    a_name,
    a_segment,
    an_id,
    an_object,
    files_below,
    read_json_object,
    seconds,
)
from unloc.annotations.schema import Manifest, build_manifest, instance_row, video_row
from unloc.errors import ManifestError
from unloc.recipes import dataset_description


@dataclass(frozen=True)
class _Video:
    row: dict
    task: str
    steps: list[tuple[str, str, list[float]]]
    """(step id, label, segment) in the file's order."""
    place: str


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All videos and steps, as written; `split` keeps one subset. Classes in the order of the official step ids.

    Of COIN itself these are the 778 steps of its taxonomy, whichever of them the files show; of another dataset in its
    format the steps of the files.
    A step name that several ids share carries its task, as `name (Task)`: ids are the classes. An official split file
    beside the annotations (an object of video id to subset) names the videos that lack annotations.
    """
    videos: list[_Video] = []
    listed: dict[str, str] = {}
    for path in files_below(paths, "coin*.json", "*.json", but="coin_test_without*.json"):
        content = read_json_object(path, repairs)
        if content and all(isinstance(value, str) for value in content.values()):
            listed |= content
        else:
            videos += [_video(*entry) for entry in database_entries(content, path, "COIN")]
    wanted_split(split, Counter(video.row["split"] for video in videos), paths)
    _tell_gap({key: subset for key, subset in listed.items() if split in (None, subset)}, videos, repairs)
    names = _step_names(_with_taxonomy(_steps(videos, repairs), repairs), repairs)
    kept = [video for video in videos if split in (None, video.row["split"])]
    instances = [
        instance_row(video.row["video_id"], video.row["split"], names[step_id], *segment)
        for video in kept
        for step_id, _, segment in video.steps
    ]
    classes = [names[step_id] for step_id in sorted(names, key=int)]
    rows = [*(video.row for video in kept), *instances]
    return build_manifest(name="coin", tasks=("as",), classes=classes, source="COIN", rows=rows)


def _video(place: str, video_id: str, entry: dict) -> _Video:
    row = video_row(video_id, a_name(entry, "subset", place), seconds(entry, "duration", place))
    steps = [
        _step(item, f"{place}.annotation[{number}]") for number, item in enumerate(a_list(entry, "annotation", place))
    ]
    return _Video(row, a_name(entry, "class", place), steps, place)


def _step(item: object, place: str) -> tuple[str, str, list[float]]:
    entry = an_object(item, place)
    step_id = an_id(entry, "id", place)
    if not step_id.isdecimal():
        raise ManifestError(f"{place}: id must be a whole number, got {step_id!r}")
    return step_id, a_name(entry, "label", place), a_segment(entry.get("segment"), f"{place}.segment")


def _tell_gap(listed: dict[str, str], videos: list[_Video], repairs: Repairs) -> None:
    """Tell which videos of the official split file have no annotations here."""
    here = {video.row["video_id"] for video in videos}
    for video_id, subset in listed.items():
        if video_id not in here:
            repairs.add(f"coverage gap: {subset} video of the official split file without annotations", video_id)


def _steps(videos: list[_Video], repairs: Repairs) -> dict[str, tuple[str, str]]:
    """Step id to (label, task), as first seen."""
    steps: dict[str, tuple[str, str]] = {}
    for video in videos:
        for number, (step_id, label, _) in enumerate(video.steps):
            known = steps.setdefault(step_id, (label, video.task))
            if known != (label, video.task):
                rule = "step id with another name or task than where it first stands: the first taken"
                repairs.add(rule, f"{video.place}.annotation[{number}]")
    return steps


def _with_taxonomy(steps: dict[str, tuple[str, str]], repairs: Repairs) -> dict[str, tuple[str, str]]:
    """All steps of COIN's taxonomy where most of these are its steps; else these alone."""
    described = dataset_description("coin")["steps"]
    official = {str(key): (label, task) for task, labels in described.items() for key, label in labels.items()}
    other = [key for key, (label, _) in steps.items() if label != official.get(key, ("",))[0]]
    if 2 * len(other) >= len(steps):
        return steps
    for key in other:
        repairs.add("step id with another name than in COIN's taxonomy: the taxonomy's taken", f"step {key}")
    return steps | official


def _step_names(steps: dict[str, tuple[str, str]], repairs: Repairs) -> dict[str, str]:
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
        repairs.add("step name shared by several ids: its task added", f"step {step_id}: {names[step_id]!r}")
    return names
