"""QVHighlights (MR and HD): JSON lines; the test split comes with or without annotations."""

from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, files_with_splits, sentence
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest
from unloc.annotations.values import Name, Segment, parse_json, read_lines, typed


@dataclass(frozen=True)
class _Query:
    qid: Name
    query: str
    vid: Name
    duration: float
    relevant_windows: list[Segment] | None = None
    relevant_clip_ids: list[float] | None = None
    saliency_scores: list[list[float]] | None = None


def convert(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All queries with their windows and the three raters' saliency per relevant clip.

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
