"""ActivityNet Captions, Charades-STA, TimeLens (MR), QVHighlights (MR and HD), GMR and NA-VMR (MR with null queries):
sentences, and when each is true.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from unloc.annotations.own import video_id_of
from unloc.annotations.reading import Problems, files_below, is_number, parse_as, read_csv, read_json, read_lines, typed
from unloc.annotations.schema import Name, QueryRow, Rows, Segment, VideoRow
from unloc.errors import ManifestError

CAPTIONS = {"duration": float, "timestamps": list[Segment], "sentences": list[str]}
HIGHLIGHTS = {"qid": Name, "query": str, "vid": Name, "duration": float, "relevant_windows": list[Segment] | None}
HIGHLIGHTS |= {"relevant_clip_ids": list[float] | None, "saliency_scores": list[list[float]] | None}
TIMELENS_VIDEO = {"duration": float, "spans": list[object], "queries": list[str]}
TIMELENS_LINE = {"video_path": str, "duration": float, "events": list[{"query": str, "span": object}]}
NULLABLE = {"qid": Name | None, "vid": Name | None, "query": str | None, "duration": float | None}
NULLABLE |= {"moment": dict[str, object] | None, "query_type": str | None}
POINT_RULE = {"pre": 6.0, "post": 2.0}  # seconds around a time stamp, where the rule of its query type lacks them
MARK = ">>>"
_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|validation|test|testing)(_\d)?(?=[_.-]|$)")


def activitynet_captions(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """An object keyed by `v_<id>`; the split of a file is in its name (train, val_1, val_2). Segments as written."""
    rows = []
    for path, name in _files_with_splits(files_below(paths, "*.json", but="*_ids.json"), split, problems):
        for video_id, video in read_json(dict[str, CAPTIONS], path, problems).items():
            place, segments, texts = f"{path}: {video_id!r}", video["timestamps"], video["sentences"]
            if len(segments) != len(texts):
                raise ManifestError(f"{place}: {len(segments)} timestamps, {len(texts)} sentences")
            rows.append(VideoRow(video_id, name, video["duration"]))
            for number, (segment, text) in enumerate(zip(segments, texts, strict=True)):
                text = _sentence(text, f"{place}.sentences[{number}]", problems)
                rows.append(QueryRow(video_id, name, f"{name}:{video_id}:{number}", text, [segment]))
    return rows, ()


def charades_sta(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """`ID START END##SENTENCE` lines of txt files; lengths from the csv files given with them (columns id, length).
    Segments as written: 2,367 official ends are past the video's length; the protocol says whether they are clamped.
    """
    files = files_below(paths, "charades*.[ct][sx][vt]", "*.[ct][sx][vt]")
    texts = [path for path in files if path.suffix.lower() != ".csv"]
    if not texts:
        raise ManifestError(f"{paths[0]}: no charades_sta_*.txt among the annotations")
    lengths: dict[str, float] = {}
    for path in [path for path in files if path not in texts]:
        for place, row in read_csv(path)[1]:
            try:
                other = float(row["length"])
                differs = lengths.setdefault(row["id"], other) != other
            except (KeyError, TypeError, ValueError) as error:
                raise ManifestError(f"{place}: expected columns id and length in seconds; wrong: {error}") from None
            problems.add("video with several lengths: the first is used", f"{place}: {row['id']!r}", differs)
    videos, queries = {}, []
    for path, name in _files_with_splits(texts, split, problems):
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
            queries.append(QueryRow(video_id, name, f"{name}:{number}", _sentence(text, place, problems), [segment]))
    return [*videos.values(), *queries], ()


def qvhighlights(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """JSON lines: queries with their windows and the three raters' saliency per relevant clip. Of the same query in two
    files of a split, one without windows (the test file as first released), the one with windows is used.
    """
    videos, queries, repeats = {}, {}, []
    for path, name in _files_with_splits(files_below(paths, "highlight_*.jsonl", "*.jsonl"), split, problems):
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            entry = parse_as(HIGHLIGHTS, line, place)
            text, windows = _sentence(entry["query"], place, problems), entry["relevant_windows"] or []
            ratings = {key: entry[key] for key in ("relevant_clip_ids", "saliency_scores")}
            row = QueryRow(entry["vid"], name, entry["qid"], text, windows, **ratings)
            videos.setdefault((name, row.video_id), VideoRow(row.video_id, name, entry["duration"]))
            first = queries.setdefault((name, row.qid), row)
            same = (first.video_id, first.text) == (row.video_id, row.text)
            if first is not row and same and not (first.segments and windows):
                problems.add("query in two files of a split, one without windows: the one with windows used", place)
                queries[name, row.qid] = row if windows else first
            elif first is not row:
                repeats.append(row)
    return [*videos.values(), *queries.values(), *repeats], ()


def nullable(paths: list[Path], split: str | None, problems: Problems, *, gmr: bool = False) -> Rows:
    """JSON lines as of QVHighlights, where a query may be null: [[0, 0]] (NA-VMR) or `[]` (GMR, Soccer-GMR).

    As officially in GMR, without `relevant_windows` `moment` counts: "clips", or "timestamps", which become windows by
    the rules of a JSON object among the paths, {"default": {"pre", "post"}, "by_query_type": {…}}; what is not two
    numbers is no window, and what has no qid is no query. Windows are cut to the duration of their line, and what is
    left is sorted by start, each once.
    """
    videos, queries, rules, lines = {}, [], None, []
    for path in files_below(paths, "*.jsonl", "*.json"):
        if path.suffix.lower() == ".json":
            rules = read_json({"default": object | None, "by_query_type": dict[str, object] | None}, path, problems)
        else:
            lines.append(path)
    for path, name in _files_with_splits(lines, split, problems):
        for number, line in read_lines(path):
            place, content = f"{path}:{number}", parse_as(dict[str, object], line, f"{path}:{number}")
            entry = typed(NULLABLE, content, place)
            if entry["qid"] is None:
                problems.add("query without qid: left out, as officially", place)
                continue
            given, moment = content.get("relevant_windows"), entry["moment"]
            if "relevant_windows" not in content and moment:
                kind, given = moment.get("type"), moment.get("value")
                given = given if isinstance(given, list) else []
                if kind == "timestamps":
                    given = [_around(point, entry["query_type"], rules, place) for point in given if is_number(point)]
                elif kind != "clips":
                    raise ManifestError(f"{place}: moment.type must be clips or timestamps, got {kind!r}")
                elif len(given) == 2 and all(map(is_number, given)):
                    given = [given]
            given = [] if given == [[0, 0]] or not isinstance(given, list) else given
            windows = [window for window in map(_window, given) if window]
            problems.add("window that is not two numbers: left out, as officially", place, len(given) - len(windows))
            video_id = entry["vid"] or f"qid_{entry['qid']}"
            problems.add("query without a video: its qid names one", place, not entry["vid"])
            if gmr:
                end, before = entry["duration"] or math.inf, windows
                cut = sorted(([max(a, 0.0), min(b, end)] for a, b in windows), key=lambda window: window[0])
                windows = [window for i, window in enumerate(cut) if window[0] < window[1] and window not in cut[:i]]
                problems.add("windows cut to the video, sorted, or left out, as officially", place, windows != before)
            known = videos.setdefault((video_id, name), VideoRow(video_id, name, entry["duration"]))
            if known.duration_seconds and entry["duration"] and entry["duration"] > known.duration_seconds:
                videos[video_id, name] = VideoRow(video_id, name, entry["duration"])
            text = _sentence(entry["query"] or "", place, problems)
            queries.append(QueryRow(video_id, name, entry["qid"], text, windows))
    return [*videos.values(), *queries], ()


def _window(value: object) -> list[float] | None:
    """Two numbers, also as strings."""
    try:
        start, end = map(float, value if isinstance(value, list) else ())
    except (TypeError, ValueError, OverflowError):
        return None
    return [start, end] if math.isfinite(start) and math.isfinite(end) else None


def _around(point: float, query_type: str | None, rules: dict | None, place: str) -> list[float]:
    """The window around a time stamp. Raises ManifestError if no rule says how far it reaches."""
    rule = rules and (rules["by_query_type"] or {}).get(query_type, rules["default"])
    if rule is None:
        hint = 'give the JSON file with {"default": {"pre", "post"}, "by_query_type"} among the annotations'
        raise ManifestError(f"{place}: no rule turns the time stamp {point} of {query_type} into a window; {hint}")
    rule = POINT_RULE | rule
    return [point - rule["pre"], point + rule["post"]]


def timelens(paths: list[Path], split: str | None, problems: Problems) -> Rows:
    """Re-annotated queries of Charades, ActivityNet and QVHighlights, and the training set of TimeLens.

    Three forms are read: the benchmark's object `{video: {duration, spans, queries}}`; the training set's lines
    `{video_path, duration, events: [{query, span}]}`; and `"{video}>>>{query}>>>{span}"`, as keys of its result files,
    in a list or one a line: the ground truth without the benchmark's file. Results in the values are not read.
    The split is what --split or the file's name says, else test, or train for the training set's form. Lengths come
    from `duration` where a file gives it; otherwise they stay unknown until extraction measures them.
    """
    videos, queries = {}, []
    for path in files_below(paths, "*timelens*.json*", "*.json*", "*.txt"):
        stated = _splits_in_name(path)
        if not split and len(stated) > 1:
            raise ManifestError(f"{path}: its name states {' and '.join(stated)}; give --split")
        is_training = any('"events"' in line for _, line in read_lines(path))
        name = split or (stated[0] if stated else "train" if is_training else "test")
        if path.suffix.lower() in (".jsonl", ".txt"):
            contents = {f"{path}:{number}": line.strip() for number, line in read_lines(path)}
            for place, line in contents.items():
                if MARK not in line or line[0] in '{["':
                    contents[place] = parse_as(object, line, place)
        else:
            contents = {str(path): read_json(object, path, problems)}
        entries = (entry for place, content in contents.items() for entry in _timelens_entries(content, place))
        for video, duration, text, spans, place in entries:
            video_id = video_id_of(video)
            known = videos.get((video, name))
            if known is None or known.duration_seconds is None:
                videos[video, name] = VideoRow(video_id, name, duration, video if video != video_id else None)
            several = isinstance(spans, list) and not (spans and all(map(is_number, spans)))
            segments = typed(list[Segment], spans if several else [spans], f"{place}: span")
            text = _sentence(text, place, problems)
            queries.append(QueryRow(video_id, name, f"{name}:{len(queries)}", text, segments))
    return [*videos.values(), *queries], ()


def _timelens_entries(content: object, place: str) -> Iterator[tuple]:
    """Every (video, duration or None, sentence, span or spans, place) of a JSON value in any of the three forms."""
    if isinstance(content, list):
        for number, item in enumerate(content):
            yield from _timelens_entries(item, f"{place}[{number}]")
        return
    if isinstance(content, dict) and "events" in content:
        line = typed(TIMELENS_LINE, content, place)
        for number, event in enumerate(line["events"]):
            yield line["video_path"], line["duration"], event["query"], event["span"], f"{place}: events[{number}]"
        return
    content = {content: None} if isinstance(content, str) else typed(dict[str, object], content, place)
    for key, value in content.items():
        where = f"{place}: {key[:60]!r}"
        if MARK in key or value is None:
            # The sentence may hold the mark, the video and the span may not.
            try:
                video, rest = key.split(MARK, 1)
                query, span = rest.rsplit(MARK, 1)
                bounds = json.loads(span.replace("(", "[").replace(")", "]"))
            except ValueError:
                raise ManifestError(f'{where}: expected "{{video}}>>>{{query}}>>>[start, end]"') from None
            duration = value.get("duration") if isinstance(value, dict) else None
            yield video, float(duration) if is_number(duration) else None, query, bounds, where
            continue
        entry = typed(TIMELENS_VIDEO, value, where)
        if len(entry["spans"]) != len(entry["queries"]):
            raise ManifestError(f"{where}: {len(entry['spans'])} spans for {len(entry['queries'])} queries")
        for number, (span, query) in enumerate(zip(entry["spans"], entry["queries"], strict=True)):
            yield key, entry["duration"], query, span, f"{where}.queries[{number}]"


def _splits_in_name(path: Path) -> list[str]:
    """The splits that a file's name states (`charades_sta_test.txt`, `val_2.json`)."""
    return sorted({name + number for name, number in _SPLIT.findall(path.stem.lower())})


def _files_with_splits(files: list[Path], split: str | None, problems: Problems) -> list[tuple[Path, str]]:
    """Every file with its split: the one its name states, or `split`. Of several files whose names state splits, it
    keeps those that state it; else it names the split of them all. Raises ManifestError where a split is not known.
    """
    stated = {path: _splits_in_name(path) for path in files}
    if split is None:
        for path, names in stated.items():
            if len(names) != 1:
                raise ManifestError(f"{path}: its name states {' and '.join(names) or 'no split'}; give --split")
        return [(path, names[0]) for path, names in stated.items()]
    known = {path: names[0] for path, names in stated.items() if len(names) == 1}
    if len(files) > 1 and split in known.values():
        for path in [path for path, name in known.items() if name != split]:
            problems.add(f"file of another split than --split {split}: left out", str(path))
            del stated[path]
    elif len(files) > 1 and len(set(known.values())) > 1:
        names = ", ".join(dict.fromkeys(known.values()))
        raise ManifestError(f"--split {split}: none of the files states it; give one file, or one of {names}")
    return [(path, split) for path in stated]


def _sentence(text: str, place: str, problems: Problems) -> str:
    """The sentence without the line breaks and surplus blanks that releases contain."""
    cleaned = " ".join(text.split())
    problems.add("sentence with surplus blanks or line breaks: cleaned", place, cleaned != text)
    return cleaned
