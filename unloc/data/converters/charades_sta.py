"""Charades-STA (MR): `ID START END##SENTENCE` lines, and the Charades csv for the lengths of the videos."""

import csv
from pathlib import Path

from unloc.data.official import files_below, read_text, split_of_name
from unloc.data.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All lines of the txt files; lengths from the csv files given beside them (columns id, length).

    Segments are kept as written: 2,367 official ends lie past the video's length, and whether they are clamped is the
    protocol's business. Raises ManifestError where a video has no length.
    """
    files = files_below(paths, "*.*")
    lengths = {key: value for path in files if path.suffix == ".csv" for key, value in _lengths(path).items()}
    rows, seen = [], set()
    texts = [path for path in files if path.suffix == ".txt"]
    if not texts:
        raise ManifestError(f"{paths[0]}: no charades_sta_*.txt among the annotations")
    for path in texts:
        name = split_of_name(path, split)
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            video_id, start, end, sentence = _parse(path, number, line)
            if video_id not in lengths:
                raise ManifestError(f"{path}:{number}: no length for video {video_id!r}; give the Charades csv too")
            if (video_id, name) not in seen:
                seen.add((video_id, name))
                rows.append(video_row(video_id, name, lengths[video_id]))
            rows.append(query_row(video_id, name, f"{name}:{number}", sentence, [[start, end]]))
    return build_manifest(name="charades_sta", tasks=("mr",), source="Charades-STA", rows=rows)


def _parse(path: Path, number: int, line: str) -> tuple[str, float, float, str]:
    head, mark, sentence = line.partition("##")
    words = head.split()
    try:
        video_id, start, end = words[0], float(words[1]), float(words[2])
    except (IndexError, ValueError):
        mark = ""
    if not mark or len(words) != 3:
        raise ManifestError(f"{path}:{number}: expected `ID START END##SENTENCE`, got {line[:60]!r}")
    return video_id, start, end, sentence.strip()


def _lengths(path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if not {"id", "length"} <= set(reader.fieldnames or ()):
            raise ManifestError(f"{path}:1: expected a csv with columns id and length, got {reader.fieldnames}")
        return {row["id"]: float(row["length"]) for row in reader}
