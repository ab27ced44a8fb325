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
from unloc.annotations.values import Segment, is_number, parse_json, read_lines, read_text, typed
from unloc.errors import ManifestError

_MARK = ">>>"
_Entry = tuple[str, float | None, str, object, str]
"""(video, duration or None, sentence, span or spans, place)"""


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


def _read(path: Path, problems: Problems) -> Iterator[_Entry]:
    if path.suffix.lower() not in (".jsonl", ".txt"):
        yield from _entries(parse_json(read_text(path), str(path), problems), str(path))
        return
    for number, line in read_lines(path):
        place, text = f"{path}:{number}", line.strip()
        is_key = _MARK in text and text[0] not in '{["'
        yield from _entries(text if is_key else parse_json(text, place), place)


def _entries(content: object, place: str) -> Iterator[_Entry]:
    """The queries of a JSON value in any of the three forms."""
    if isinstance(content, str):
        yield _of_key(content, None, place)
    elif isinstance(content, list):
        for number, item in enumerate(content):
            yield from _entries(item, f"{place}[{number}]")
    elif isinstance(content, dict) and "events" in content:
        line = typed(_TrainingLine, content, place)
        for number, event in enumerate(line.events):
            yield line.video_path, line.duration, event.query, event.span, f"{place}: events[{number}]"
    else:
        for key, value in typed(dict[str, object], content, place).items():
            where = f"{place}: {key[:60]!r}"
            if _MARK in key:
                yield _of_key(key, value, where)
                continue
            video = typed(_Video, value, where)
            if len(video.spans) != len(video.queries):
                raise ManifestError(f"{where}: {len(video.spans)} spans for {len(video.queries)} queries")
            for number, (span, query) in enumerate(zip(video.spans, video.queries, strict=True)):
                yield key, video.duration, query, span, f"{where}.queries[{number}]"


def _of_key(key: str, value: object, place: str) -> _Entry:
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
    return video, float(duration) if is_number(duration) else None, query, bounds, place
