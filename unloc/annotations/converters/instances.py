"""ActivityNet 1.3 and THUMOS14 in ActionFormer's JSON (TAL), COIN (AS): a `database` of videos with their subsets."""

from collections import Counter
from pathlib import Path

from unloc.annotations.reading import Name, Problems, Segment, files_below, read_json, typed
from unloc.annotations.schema import InstanceRow, Rows, VideoRow
from unloc.errors import ManifestError
from unloc.recipes import dataset_description

INSTANCE = {"label": Name, "segment": Segment}
VIDEO = {"subset": Name, "duration": float, "annotations": list[INSTANCE]}
COIN_VIDEO = {"subset": Name, "class": Name, "duration": float, "annotation": list[INSTANCE | {"id": Name}]}
SUBSETS = {"training": "activitynet", "testing": "activitynet", "Validation": "thumos14", "Test": "thumos14"}


def activitynet(paths: list[Path], split: str | None, problems: Problems, dataset: str = "activitynet") -> Rows:
    """All videos and instances as written, of ActivityNet or THUMOS14, whose subsets are put in lower case.

    Classes alphabetically, like the official ids: the labels of all subsets, and the leaves of a taxonomy. 30 instances
    of THUMOS14 start after the end of their video; they are kept, since the official scorers count them.
    """
    rows, labels = [], set()
    pattern = "thumos*.json" if dataset == "thumos14" else "activity*net*.json"
    for path in files_below(paths, pattern, "*.json"):
        content = read_json({"database": dict[str, VIDEO], "taxonomy": object | None}, path, problems)
        nodes = content["taxonomy"] if isinstance(content["taxonomy"], list) else []
        names, parents = (
            {node[key] for node in nodes if isinstance(node, dict) and isinstance(node.get(key), str)}
            for key in ("nodeName", "parentName")
        )
        labels |= {name for name in names - parents if name.strip()}
        for video_id, video in content["database"].items():
            place, subset = f"{path}: database[{video_id!r}]", video["subset"]
            other = SUBSETS.get(subset, dataset)
            if other != dataset:
                raise ManifestError(f"{place}: subset {subset!r} is the spelling of {other}; convert it as {other}")
            if dataset == "thumos14" and subset != subset.lower():
                problems.add(f"subset {subset!r}: written {subset.lower()!r}", place)
                subset = subset.lower()
            labels |= {item["label"] for item in video["annotations"]}
            rows.append(VideoRow(video_id, subset, video["duration"]))
            rows += [InstanceRow(video_id, subset, **item) for item in video["annotations"]]
    return rows, sorted(labels)


def coin(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """All videos and steps as written. Classes in the order of the step ids: of COIN itself the 778 steps of its
    taxonomy, else the steps of the files. A step name of several ids carries its task, as `name (Task)`, and its id
    where one task has it twice. An official split file (video id to subset) tells which videos lack annotations.
    """
    videos, listed, steps = {}, {}, {}  # steps: id to (label, task), as first seen
    for path in files_below(paths, "coin*.json", "*.json", but="coin_test_without*.json"):
        content = read_json(object, path, problems)
        if isinstance(content, dict) and content and all(isinstance(value, str) for value in content.values()):
            listed |= content
            continue
        found = typed({"database": dict[str, COIN_VIDEO]}, content, str(path))["database"]
        videos |= found
        for video_id, video in found.items():
            for number, step in enumerate(video["annotation"]):
                place, named = f"{path}: database[{video_id!r}].annotation[{number}]", (step["label"], video["class"])
                if not step["id"].isdecimal():
                    raise ManifestError(f"{place}: id must be a whole number, got {step['id']!r}")
                if steps.setdefault(step["id"], named) != named:
                    problems.add("step id with another name or task than at its first use: the first is used", place)
    for video_id, subset in listed.items():
        if video_id not in videos and split in (None, subset):
            problems.add(f"coverage gap: {subset} video of the official split file without annotations", video_id)
    described = dataset_description("coin")["steps"]
    official = {str(key): (label, task) for task, labels in described.items() for key, label in labels.items()}
    other = [key for key, (label, _) in steps.items() if label != official.get(key, ("",))[0]]
    if 2 * len(other) < len(steps):  # most are steps of COIN's taxonomy: COIN itself
        steps = steps | official
        for key in other:
            problems.add("step id with another name than in COIN's taxonomy: the taxonomy's is used", f"step {key}")
    names, labels, tasks = {}, Counter(label for label, _ in steps.values()), Counter(steps.values())
    for step_id, (label, task) in steps.items():
        names[step_id] = label
        if labels[label] > 1:
            names[step_id] = f"{label} ({task} {step_id})" if tasks[label, task] > 1 else f"{label} ({task})"
            problems.add("step name shared by several ids: its task added", f"step {step_id}: {names[step_id]!r}")
    rows = []
    for video_id, video in videos.items():
        rows.append(VideoRow(video_id, video["subset"], video["duration"]))
        rows += [InstanceRow(video_id, video["subset"], names[i["id"]], i["segment"]) for i in video["annotation"]]
    return rows, [names[step_id] for step_id in sorted(names, key=int)]
