"""QVHighlights (MR and HD): JSON lines; the test split comes with or without annotations."""

from pathlib import Path

from unloc.annotations.official import (
    Repairs,
    a_list,
    a_segment,
    a_text,
    an_id,
    files_below,
    files_with_splits,
    read_json_lines,
    seconds,
    sentence,
)
from unloc.annotations.rows import is_number
from unloc.annotations.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All queries with their windows and the three raters' saliency per relevant clip.

    Where two files of a split hold the same query, one of them without windows (the test file as first released), the
    one with windows is taken.
    """
    videos: dict[tuple[str, str], dict] = {}
    queries: dict[tuple[str, str], dict] = {}
    repeats: list[dict] = []
    for path, name in files_with_splits(files_below(paths, "highlight_*.jsonl", "*.jsonl"), split, repairs):
        for place, entry in read_json_lines(path):
            row = _query(entry, name, place, repairs)
            video_id = row["video_id"]
            videos.setdefault((name, video_id), video_row(video_id, name, seconds(entry, "duration", place)))
            first = queries.setdefault((name, row["qid"]), row)
            if first is not row and _same_query(first, row) and not (first["segments"] and row["segments"]):
                repairs.add("query in two files of a split, one without windows: the one with windows taken", place)
                queries[name, row["qid"]] = row if row["segments"] else first
            elif first is not row:
                repeats.append(row)
    rows = [*videos.values(), *queries.values(), *repeats]
    return build_manifest(name="qvhighlights", tasks=("mr", "hd"), source="QVHighlights", rows=rows)


def _same_query(first: dict, row: dict) -> bool:
    return (first["video_id"], first["text"]) == (row["video_id"], row["text"])


def _query(entry: dict, split: str, place: str, repairs: Repairs) -> dict:
    windows = a_list(entry, "relevant_windows", place) if entry.get("relevant_windows") is not None else []
    text = sentence(a_text(entry, "query", place), place, repairs)
    return query_row(
        an_id(entry, "vid", place),
        split,
        an_id(entry, "qid", place),
        text,
        [a_segment(window, f"{place}: relevant_windows[{number}]") for number, window in enumerate(windows)],
        _numbers(entry.get("relevant_clip_ids"), f"{place}: relevant_clip_ids"),
        _ratings(entry.get("saliency_scores"), f"{place}: saliency_scores"),
    )


def _numbers(values: object, place: str) -> list[int] | None:
    if values is None or (isinstance(values, list) and all(map(is_number, values))):
        return values
    raise ManifestError(f"{place}: expected a list of numbers, got {values!r}")


def _ratings(values: object, place: str) -> list[list[int]] | None:
    if values is not None and not isinstance(values, list):
        raise ManifestError(f"{place}: expected a list of ratings per clip, got {values!r}")
    return values and [_numbers(triple, f"{place}[{number}]") or [] for number, triple in enumerate(values)]
