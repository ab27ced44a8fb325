"""ActivityNet 1.3 (TAL): one JSON with `database`; subsets training, validation, testing."""

from pathlib import Path

from unloc.data.official import files_below, need, read_database
from unloc.data.schema import Manifest, build_manifest, instance_row, video_row


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All videos and instances; `split` keeps one subset. Classes in alphabetical order, from all subsets."""
    videos, instances, labels = [], [], set()
    for path in files_below(paths, "*.json"):
        for video_id, entry in read_database(path, "ActivityNet").items():
            where = f"{path}: database[{video_id!r}]"
            need(entry, ("duration", "subset", "annotations"), where)
            labels |= {item["label"] for item in entry["annotations"]}
            if split not in (None, entry["subset"]):
                continue
            videos.append(video_row(video_id, entry["subset"], float(entry["duration"])))
            for number, item in enumerate(entry["annotations"]):
                need(item, ("segment", "label"), f"{where}.annotations[{number}]")
                start, end = item["segment"]
                instances.append(instance_row(video_id, entry["subset"], item["label"], start, end))
    return build_manifest(
        name="activitynet",
        tasks=("tal",),
        classes=sorted(labels),
        source="ActivityNet 1.3",
        rows=[*videos, *instances],
    )
