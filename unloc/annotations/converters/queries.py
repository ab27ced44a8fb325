"""ActivityNet Captions and Charades-STA (MR), QVHighlights (MR and HD): sentences, and when each is true."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, files_with_splits, sentence
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest
from unloc.annotations.values import Name, Segment, parse_json, read_json, read_lines, read_text, typed
from unloc.errors import ManifestError


@dataclass(frozen=True)
class _Captions:
    duration: float
    timestamps: list[Segment]
    sentences: list[str]


def activitynet_captions(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """An object keyed by `v_<id>`; the split of a file is in its name (train, val_1, val_2). Segments as written."""
    rows: list[VideoRow | QueryRow] = []
    for path, name in files_with_splits(files_below(paths, "*.json", but="*_ids.json"), split, problems):
        for video_id, video in read_json(dict[str, _Captions], path, problems).items():
            place = f"{path}: {video_id!r}"
            if len(video.timestamps) != len(video.sentences):
                raise ManifestError(f"{place}: {len(video.timestamps)} timestamps, {len(video.sentences)} sentences")
            rows.append(VideoRow(video_id, name, video.duration))
            for number, (segment, text) in enumerate(zip(video.timestamps, video.sentences, strict=True)):
                text = sentence(text, f"{place}.sentences[{number}]", problems)
                rows.append(QueryRow(video_id, name, f"{name}:{video_id}:{number}", text, [segment]))
    return build_manifest(name="activitynet_captions", tasks=("mr",), source="ActivityNet Captions", rows=rows)


def charades_sta(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """`ID START END##SENTENCE` lines of txt files; lengths from the csv files given with them (columns id, length).

    Segments as written: 2,367 official ends are past the video's length; the protocol says whether they are clamped.
    Raises ManifestError where a video has no length.
    """
    files = files_below(paths, "charades*.[ct][sx][vt]", "*.[ct][sx][vt]")
    texts = [path for path in files if path.suffix.lower() != ".csv"]
    if not texts:
        raise ManifestError(f"{paths[0]}: no charades_sta_*.txt among the annotations")
    lengths = _lengths([path for path in files if path not in texts], problems)
    videos, queries = {}, []
    for path, name in files_with_splits(texts, split, problems):
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            try:
                head, text = line.split("##", 1)
                video_id, start, end = head.split()
                segment = [float(start), float(end)]
            except ValueError:
                raise ManifestError(f"{place}: expected `ID START END##SENTENCE`, got {line[:60]!r}") from None
            if video_id not in lengths:
                raise ManifestError(f"{place}: no length for video {video_id!r}; give the Charades csv too")
            videos[video_id, name] = VideoRow(video_id, name, lengths[video_id])
            text = sentence(text, place, problems)
            queries.append(QueryRow(video_id, name, f"{name}:{number}", text, [segment]))
    rows = [*videos.values(), *queries]
    return build_manifest(name="charades_sta", tasks=("mr",), source="Charades-STA", rows=rows)


def _lengths(paths: list[Path], problems: Problems) -> dict[str, float]:
    lengths: dict[str, float] = {}
    for path in paths:
        reader = csv.DictReader(io.StringIO(read_text(path)))
        try:
            for row in reader:
                place, other = f"{path}:{reader.line_num}: {row['id']!r}", float(row["length"])
                length = lengths.setdefault(row["id"], other)
                problems.add("video with several lengths: the first is used", place, length != other)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            where = f"{path}:{reader.line_num}"
            raise ManifestError(f"{where}: expected columns id and length in seconds; wrong: {error}") from None
    return lengths


@dataclass(frozen=True)
class _Query:
    qid: Name
    query: str
    vid: Name
    duration: float
    relevant_windows: list[Segment] | None = None
    relevant_clip_ids: list[float] | None = None
    saliency_scores: list[list[float]] | None = None


def qvhighlights(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """JSON lines: queries with their windows and the three raters' saliency per relevant clip.

    Where two files of a split hold the same query, one of them without windows (the test file as first released), the
    one with windows is used.
    """
    videos: dict[tuple[str, str], VideoRow] = {}
    queries: dict[tuple[str, str], QueryRow] = {}
    repeats: list[QueryRow] = []
    for path, name in files_with_splits(files_below(paths, "highlight_*.jsonl", "*.jsonl"), split, problems):
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            entry = typed(_Query, parse_json(line, place), place)
            text, windows = sentence(entry.query, place, problems), entry.relevant_windows or []
            row = QueryRow(entry.vid, name, entry.qid, text, windows, entry.relevant_clip_ids, entry.saliency_scores)
            videos.setdefault((name, entry.vid), VideoRow(entry.vid, name, entry.duration))
            first = queries.setdefault((name, row.qid), row)
            same = (first.video_id, first.text) == (row.video_id, row.text)
            if first is not row and same and not (first.segments and windows):
                problems.add("query in two files of a split, one without windows: the one with windows used", place)
                queries[name, row.qid] = row if windows else first
            elif first is not row:
                repeats.append(row)
    rows = [*videos.values(), *queries.values(), *repeats]
    return build_manifest(name="qvhighlights", tasks=("mr", "hd"), source="QVHighlights", rows=rows)
