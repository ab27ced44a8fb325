"""ActivityNet 1.3 and THUMOS14 in ActionFormer's JSON (TAL) and COIN (AS), each a `database` of videos with their
subsets; Kinetics-400, 600 and 700: csv files of labelled clips of YouTube's videos (CLS).
"""

from collections import Counter
from pathlib import Path

from unloc.annotations.reading import Name, Problems, Segment, files_below, read_csv, read_json, read_text, typed
from unloc.annotations.schema import InstanceRow, Rows, VideoRow
from unloc.errors import ManifestError
from unloc.recipes import dataset_description

INSTANCE = {"label": Name, "segment": Segment}
VIDEO = {"subset": Name, "duration": float, "annotations": list[INSTANCE]}
COIN_VIDEO = {"subset": Name, "class": Name, "duration": float, "annotation": list[INSTANCE | {"id": Name}]}
KINETICS_SPLITS = {"validate": "val", "validation": "val"}
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


def kinetics(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """A row `label, youtube_id, time_start, time_end, split` is a clip of that length; its label is of the whole clip.

    A clip's id is the name that downloaders give its file, `ID_000084_000094`. Clips without label (test files) are
    videos only. Classes alphabetical, as in the official lists: the labels of all rows, and of class lists among the
    files, also those that no clip here shows (columns `id` and `name`; or a txt file, one name a line).
    """
    rows, labels = [], set()
    for path in files_below(paths, "*.csv"):
        if path.suffix.lower() == ".txt":
            labels |= {line.strip() for line in read_text(path).split("\n")}
            continue
        columns, entries = read_csv(path)
        if "name" in columns:
            labels |= {entry["name"].strip() for _, entry in entries}
            continue
        if missing := {"youtube_id", "time_start", "time_end"}.difference(columns):
            raise ManifestError(f"{path}: lacks the columns {', '.join(sorted(missing))} of Kinetics' csv files")
        for place, entry in entries:
            try:
                start, end = float(entry["time_start"]), float(entry["time_end"])
                clip_id = f"{entry['youtube_id'].strip()}_{int(start):06d}_{int(end):06d}"
            except (TypeError, ValueError, OverflowError):
                raise ManifestError(f"{place}: times must be seconds, got {list(entry.values())}") from None
            stated, label = (entry.get("split") or split or "").strip(), (entry.get("label") or "").strip()
            name = KINETICS_SPLITS.get(stated, stated)
            if not name:
                raise ManifestError(f"{place}: no split in this row; name it with --split")
            problems.add(f"split {stated!r}: written {name!r}", place, name != stated)
            problems.add("clip without a label", place, not label)
            rows.append(VideoRow(clip_id, name, end - start))
            rows += [InstanceRow(clip_id, name, label, [0.0, end - start])] if label else []
            labels.add(label)
    return rows, sorted(labels - {""})
