"""TimeLens (MR): re-annotated queries of Charades, ActivityNet and QVHighlights, and its training set.

Three forms are read: the benchmark's object `{video: {duration, spans, queries}}`; the training set's lines
`{video_path, duration, events: [{query, span}]}`; and `"{video}>>>{query}>>>{span}"`, as keys of its result files,
in a list or one a line: the ground truth without the benchmark's file. Results in the values are not read.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unloc.annotations.official import (
    Repairs,
    a_list,
    a_segment,
    a_text,
    an_object,
    files_below,
    parse_json_line,
    read_json,
    read_lines,
    read_text,
    seconds,
    sentence,
    split_of_name,
)
from unloc.annotations.rows import is_number, is_segment
from unloc.annotations.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError

_MARK = ">>>"


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All queries with their spans.

    The split is what --split or the file's name says, else test, or train for the training set's form. Lengths
    come from `duration` where a file gives it; otherwise they stay unknown until extraction measures them.
    """
    videos: dict[tuple[str, str], dict] = {}
    queries = []
    for path in files_below(paths, "*timelens*.json*", "*.json*", "*.txt"):
        name = split or split_of_name(path) or ("train" if '"events"' in read_text(path) else "test")
        for video_id, duration, words, spans in _read(path, repairs):
            video = videos.setdefault((video_id, name), video_row(_stem(video_id), name, duration, _file(video_id)))
            if video["duration_seconds"] is None:
                video["duration_seconds"] = duration
            queries.append(query_row(video["video_id"], name, f"{name}:{len(queries)}", words, spans))
    return build_manifest(name="timelens", tasks=("mr",), source="TimeLens", rows=[*videos.values(), *queries])


def _file(video: str) -> str | None:
    """The file where the annotation names one, else None: it is then found by its id."""
    return video if _stem(video) != video else None


def _stem(video: str) -> str:
    """`v_x.mp4` and `folder/v_x.mp4` are the video v_x; ids with dots of their own keep them."""
    path = PurePosixPath(video)
    return path.stem if path.suffix.lower() in (".mp4", ".mkv", ".webm", ".avi", ".mov") else path.name


Entry = tuple[str, float | None, str, list[list[float]]]


def _read(path: Path, repairs: Repairs) -> Iterator[Entry]:
    """(video, duration or None, sentence, spans) of every query."""
    if path.suffix.lower() not in (".jsonl", ".txt"):
        yield from _entries(read_json(path, repairs), str(path), repairs)
        return
    for number, line in read_lines(path):
        place, words = f"{path}:{number}", line.strip()
        bare = _MARK in words and words[0] not in '{["'
        yield from _entries(words if bare else parse_json_line(words, place), place, repairs)


def _entries(content: object, place: str, repairs: Repairs) -> Iterator[Entry]:
    if isinstance(content, str):
        yield _of_key(content, None, place, repairs)
        return
    if isinstance(content, list):
        for number, item in enumerate(content):
            yield from _entries(item, f"{place}[{number}]", repairs)
        return
    if "events" in an_object(content, place):
        yield from _training_line(content, place, repairs)
        return
    for key, value in content.items():
        where = f"{place}: {key[:60]!r}"
        if _MARK in key:
            yield _of_key(key, value, where, repairs)
        else:
            yield from _benchmark_entry(key, an_object(value, where), where, repairs)


def _benchmark_entry(video: str, entry: dict, place: str, repairs: Repairs) -> Iterator[Entry]:
    spans, queries = a_list(entry, "spans", place), a_list(entry, "queries", place)
    if len(spans) != len(queries):
        raise ManifestError(f"{place}: {len(spans)} spans for {len(queries)} queries")
    duration = seconds(entry, "duration", place)
    for number, (span, query) in enumerate(zip(spans, queries, strict=True)):
        where = f"{place}.queries[{number}]"
        words = sentence(a_text({"query": query}, "query", where), where, repairs)
        yield video, duration, words, _spans(span, f"{place}.spans[{number}]")


def _training_line(entry: dict, place: str, repairs: Repairs) -> Iterator[Entry]:
    video, duration = a_text(entry, "video_path", place), seconds(entry, "duration", place)
    for number, item in enumerate(a_list(entry, "events", place)):
        where = f"{place}: events[{number}]"
        event = an_object(item, where)
        words = sentence(a_text(event, "query", where), where, repairs)
        yield video, duration, words, _spans(event.get("span"), f"{where}.span")


def _of_key(key: str, value: object, place: str, repairs: Repairs) -> Entry:
    """`"{video}>>>{query}>>>{span}"`; the sentence may hold the mark, the video and the span may not."""
    video, _, rest = key.partition(_MARK)
    query, mark, span = rest.rpartition(_MARK)
    try:
        bounds = json.loads(span.replace("(", "[").replace(")", "]")) if mark else None
    except json.JSONDecodeError:
        bounds = None
    if bounds is None:
        raise ManifestError(f'{place}: expected "{{video}}>>>{{query}}>>>[start, end]", got {key[:60]!r}')
    duration = value.get("duration") if isinstance(value, dict) else None
    words = sentence(query, place, repairs)
    return video, float(duration) if is_number(duration) else None, words, _spans(bounds, place)


def _spans(value: object, place: str) -> list[list[float]]:
    """One span, or a list of spans."""
    if is_segment(value) or not isinstance(value, list):
        return [a_segment(value, place)]
    return [a_segment(span, place) for span in value]
