"""TimeLens (MR): re-annotated queries of Charades, ActivityNet and QVHighlights, and its training set.

Three forms are read: the benchmark's object `{video: {duration, spans, queries}}`; the training set's lines
`{video_path, duration, events: [{query, span}]}`; and `"{video}>>>{query}>>>{span}"`, as keys of its result files,
in a list or one a line: the ground truth without the benchmark's file. Results in the values are not read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unloc.annotations.official import files_below, sentence, splits_in_name
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest
from unloc.annotations.values import Segment, is_number, parse_json, read_json, read_lines, read_text, typed
from unloc.errors import ManifestError

_MARK = ">>>"


@dataclass(frozen=True)
class _Video:
    duration: float
    spans: list[object]
    queries: list[str]


@dataclass(frozen=True)
class _Event:
    query: str
    span: object


@dataclass(frozen=True)
class _TrainingLine:
    video_path: str
    duration: float
    events: list[_Event]


def convert(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All queries with their spans.

    The split is what --split or the file's name says, else test, or train for the training set's form. Lengths come
    from `duration` where a file gives it; otherwise they stay unknown until extraction measures them.
    """
    videos: dict[tuple[str, str], VideoRow] = {}
    queries = []
    for path in files_below(paths, "*timelens*.json*", "*.json*", "*.txt"):
        stated = splits_in_name(path)
        if not split and len(stated) > 1:
            raise ManifestError(f"{path}: its name states {' and '.join(stated)}; give --split")
        name = split or (stated[0] if stated else "train" if '"events"' in read_text(path) else "test")
        for video, duration, text, spans, place in _read(path, problems):
            # `v_x.mp4` and `folder/v_x.mp4` are the video v_x; ids with dots of their own keep them.
            file = PurePosixPath(video)
            video_id = file.stem if file.suffix.lower() in (".mp4", ".mkv", ".webm", ".avi", ".mov") else file.name
            known = videos.get((video, name))
            if known is None or known.duration_seconds is None:
                videos[video, name] = VideoRow(video_id, name, duration, video if video != video_id else None)
            several = isinstance(spans, list) and not (spans and all(map(is_number, spans)))
            segments = typed(list[Segment], spans if several else [spans], f"{place}: span")
            text = sentence(text, place, problems)
            queries.append(QueryRow(video_id, name, f"{name}:{len(queries)}", text, segments))
    return build_manifest(name="timelens", tasks=("mr",), source="TimeLens", rows=[*videos.values(), *queries])


def _read(path: Path, problems: Problems) -> Iterator[tuple]:
    """Every (video, duration or None, sentence, span or spans, place) of a file."""
    if path.suffix.lower() not in (".jsonl", ".txt"):
        yield from _entries(read_json(object, path, problems), str(path))
        return
    for number, line in read_lines(path):
        place, text = f"{path}:{number}", line.strip()
        is_key = _MARK in text and text[0] not in '{["'
        yield from _entries(text if is_key else parse_json(text, place), place)


def _entries(content: object, place: str) -> Iterator[tuple]:
    """The queries of a JSON value in any of the three forms."""
    if isinstance(content, list):
        for number, item in enumerate(content):
            yield from _entries(item, f"{place}[{number}]")
        return
    if isinstance(content, dict) and "events" in content:
        line = typed(_TrainingLine, content, place)
        for number, event in enumerate(line.events):
            yield line.video_path, line.duration, event.query, event.span, f"{place}: events[{number}]"
        return
    content = {content: None} if isinstance(content, str) else typed(dict[str, object], content, place)
    for key, value in content.items():
        where = f"{place}: {key[:60]!r}"
        if _MARK in key or value is None:
            # The sentence may hold the mark, the video and the span may not.
            try:
                video, rest = key.split(_MARK, 1)
                query, span = rest.rsplit(_MARK, 1)
                bounds = json.loads(span.replace("(", "[").replace(")", "]"))
            except ValueError:
                raise ManifestError(f'{where}: expected "{{video}}>>>{{query}}>>>[start, end]"') from None
            duration = value.get("duration") if isinstance(value, dict) else None
            yield video, float(duration) if is_number(duration) else None, query, bounds, where
            continue
        entry = typed(_Video, value, where)
        if len(entry.spans) != len(entry.queries):
            raise ManifestError(f"{where}: {len(entry.spans)} spans for {len(entry.queries)} queries")
        for number, (span, query) in enumerate(zip(entry.spans, entry.queries, strict=True)):
            yield key, entry.duration, query, span, f"{where}.queries[{number}]"
