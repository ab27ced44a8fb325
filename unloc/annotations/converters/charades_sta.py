"""Charades-STA (MR): `ID START END##SENTENCE` lines, and the Charades csv for the lengths of the videos."""

import csv
import io
from pathlib import Path

from unloc.annotations.official import (
    Repairs,
    files_below,
    files_with_splits,
    read_lines,
    read_text,
    sentence,
)
from unloc.annotations.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All lines of the txt files; lengths from the csv files given beside them (columns id, length).

    Segments are kept as written: 2,367 official ends lie past the video's length, and whether they are clamped is the
    protocol's business. Raises ManifestError where a video has no length.
    """
    files = files_below(paths, "charades*.[ct][sx][vt]", "*.[ct][sx][vt]")
    texts = [path for path in files if path.suffix.lower() != ".csv"]
    if not texts:
        raise ManifestError(f"{paths[0]}: no charades_sta_*.txt among the annotations")
    lengths: dict[str, float] = {}
    for path in files:
        if path not in texts:
            _add_lengths(lengths, path, repairs)
    rows, seen = [], set()
    for path, name in files_with_splits(texts, split, repairs):
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            video_id, segment, words = _parse(line, place)
            if video_id not in lengths:
                raise ManifestError(f"{place}: no length for video {video_id!r}; give the Charades csv too")
            if (video_id, name) not in seen:
                seen.add((video_id, name))
                rows.append(video_row(video_id, name, lengths[video_id]))
            rows.append(query_row(video_id, name, f"{name}:{number}", sentence(words, place, repairs), [segment]))
    return build_manifest(name="charades_sta", tasks=("mr",), source="Charades-STA", rows=rows)


def _parse(line: str, place: str) -> tuple[str, list[float], str]:
    head, mark, words = line.rstrip("\r").partition("##")
    try:
        video_id, start, end = head.split()
        segment = [float(start), float(end)]
    except ValueError:
        mark = ""
    if not mark:
        raise ManifestError(f"{place}: expected `ID START END##SENTENCE`, got {line[:60]!r}")
    return video_id, segment, words


def _add_lengths(lengths: dict[str, float], path: Path, repairs: Repairs) -> None:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if not {"id", "length"} <= set(reader.fieldnames or ()):
        raise ManifestError(f"{path}:1: expected a csv with columns id and length, got {reader.fieldnames}")
    try:
        for row in reader:
            video_id, length = row["id"], float(row["length"])
            if lengths.setdefault(video_id, length) != length:
                place = f"{path}:{reader.line_num}: {video_id!r}"
                repairs.add("video with several lengths: the first one taken", place)
    except (TypeError, ValueError, csv.Error) as error:
        raise ManifestError(f"{path}:{reader.line_num}: length is not a number of seconds ({error})") from None
