"""COIN (AS): one JSON with `database`; every video's steps, each with an id of its own among all tasks."""

from pathlib import Path

from unloc.data.official import files_below, need, read_database
from unloc.data.schema import Manifest, build_manifest, instance_row, video_row


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All videos and steps; `split` keeps one subset. Classes in the order of the official step ids.

    A step name that several tasks share (with different ids) carries its task, as `name (Task)`: ids are the classes.
    """
    entries = [
        (path, video_id, entry)
        for path in files_below(paths, "*.json")
        for video_id, entry in read_database(path, "COIN").items()
    ]
    for path, video_id, entry in entries:
        need(entry, ("duration", "subset", "annotation", "class"), f"{path}: database[{video_id!r}]")
    names = _step_names([entry for _, _, entry in entries])
    rows = []
    for _, video_id, entry in entries:
        if split not in (None, entry["subset"]):
            continue
        rows.append(video_row(video_id, entry["subset"], float(entry["duration"])))
        rows += [
            instance_row(video_id, entry["subset"], names[str(item["id"])], *item["segment"])
            for item in entry["annotation"]
        ]
    classes = [names[step_id] for step_id in sorted(names, key=int)]
    return build_manifest(name="coin", tasks=("as",), classes=classes, source="COIN", rows=rows)


def _step_names(entries: list[dict]) -> dict[str, str]:
    """Step id to class name, unique."""
    steps = {str(item["id"]): (item["label"], entry["class"]) for entry in entries for item in entry["annotation"]}
    labels = [label for label, _ in steps.values()]
    shared = {label for label in labels if labels.count(label) > 1}
    return {key: f"{label} ({task})" if label in shared else label for key, (label, task) in steps.items()}
