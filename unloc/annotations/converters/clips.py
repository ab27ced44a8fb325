"""Kinetics-400, 600 and 700: csv files of labelled clips of YouTube's videos (video classification)."""

from pathlib import Path

from unloc.annotations.reading import Problems, files_below, read_csv, read_text
from unloc.annotations.schema import InstanceRow, Rows, VideoRow
from unloc.errors import ManifestError

SPLITS = {"validate": "val", "validation": "val"}


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
            name = SPLITS.get(stated, stated)
            if not name:
                raise ManifestError(f"{place}: no split in this row; name it with --split")
            problems.add(f"split {stated!r}: written {name!r}", place, name != stated)
            problems.add("clip without a label", place, not label)
            rows.append(VideoRow(clip_id, name, end - start))
            rows += [InstanceRow(clip_id, name, label, [0.0, end - start])] if label else []
            labels.add(label)
    return rows, sorted(labels - {""})
