"""THUMOS14 (TAL) in ActionFormer's JSON; subsets Validation (used for training) and Test, in lower case here."""

from pathlib import Path

from unloc.data.official import files_below, need, read_database
from unloc.data.schema import Manifest, build_manifest, instance_row, video_row


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All videos and instances; `split` keeps one subset. Classes in alphabetical order, like the official ids."""
    rows, labels = [], set()
    for path in files_below(paths, "*.json"):
        for video_id, entry in read_database(path, "THUMOS14").items():
            where = f"{path}: database[{video_id!r}]"
            need(entry, ("duration", "subset", "annotations"), where)
            subset = entry["subset"].lower()
            labels |= {item["label"] for item in entry["annotations"]}
            if split is not None and split.lower() != subset:
                continue
            rows.append(video_row(video_id, subset, float(entry["duration"])))
            rows += [instance_row(video_id, subset, item["label"], *item["segment"]) for item in entry["annotations"]]
    return build_manifest(name="thumos14", tasks=("tal",), classes=sorted(labels), source="THUMOS14", rows=rows)
