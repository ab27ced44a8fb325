"""Charades-STA (MR): `ID START END##SENTENCE` lines, and the Charades csv for the lengths of the videos."""

import csv
import io
from pathlib import Path

from unloc.annotations.official import files_below, files_with_splits, sentence
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest
from unloc.annotations.values import read_lines, read_text
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All lines of the txt files; lengths from the csv files given with them (columns id, length).

    Segments as written: 2,367 official ends are past the video's length; the protocol says whether they are clamped.
    Raises ManifestError where a video has no length.
    """
    files = files_below(paths, "charades*.[ct][sx][vt]", "*.[ct][sx][vt]")
    texts = [path for path in files if path.suffix.lower() != ".csv"]
    if not texts:
        raise ManifestError(f"{paths[0]}: no charades_sta_*.txt among the annotations")
    lengths: dict[str, float] = {}
    for path in files:
        if path not in texts:
            _add_lengths(lengths, path, problems)
    videos, queries = {}, []
    for path, name in files_with_splits(texts, split, problems):
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            head, mark, text = line.partition("##")
            try:
                video_id, start, end = head.split()
                segment = [float(start), float(end)]
            except ValueError:
                mark = ""
            if not mark:
                raise ManifestError(f"{place}: expected `ID START END##SENTENCE`, got {line[:60]!r}")
            if video_id not in lengths:
                raise ManifestError(f"{place}: no length for video {video_id!r}; give the Charades csv too")
            videos[video_id, name] = VideoRow(video_id, name, lengths[video_id])
            text = sentence(text, place, problems)
            queries.append(QueryRow(video_id, name, f"{name}:{number}", text, [segment]))
    rows = [*videos.values(), *queries]
    return build_manifest(name="charades_sta", tasks=("mr",), source="Charades-STA", rows=rows)


def _add_lengths(lengths: dict[str, float], path: Path, problems: Problems) -> None:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if not {"id", "length"} <= set(reader.fieldnames or ()):
        raise ManifestError(f"{path}:1: expected a csv with columns id and length, got {reader.fieldnames}")
    try:
        for row in reader:
            video_id, length = row["id"], float(row["length"])
            if lengths.setdefault(video_id, length) != length:
                problems.add("video with several lengths: the first is used", f"{path}:{reader.line_num}: {video_id!r}")
    except (TypeError, ValueError, csv.Error) as error:
        raise ManifestError(f"{path}:{reader.line_num}: length is not a number of seconds ({error})") from None
