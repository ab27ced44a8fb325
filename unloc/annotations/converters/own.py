"""Own labels: csv files and JSON lists, folders of clips by class, and the frame files of MS-TCN."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from unloc.annotations.own import Event, Media, rows_of
from unloc.annotations.reading import files_below, is_number, parse_as, read_csv, read_json, read_lines, read_text
from unloc.annotations.schema import Rows
from unloc.errors import ManifestError, MissingError
from unloc.video.locate import EXTENSIONS, video_files

COLUMNS = {  # the usual spellings, best first, without case, separators and the words of UNITS
    "video": "video video_id video_name video_file video_path video_url vid file file_name filename path clip clip_id "
    "url youtube_id name id",
    "start": "start start_time time_start starttime t_start begin begin_time from onset t0",
    "end": "end end_time time_end endtime t_end stop stop_time to finish offset t1",
    "length": "duration length",
    "segment": "segment timestamp timestamps window span",
    "label": "label labels class class_name label_name action action_label activity category tag event event_type",
    "query": "query sentence caption description text phrase prompt question annotation",
    "split": "split subset partition",
}
UNITS = {"s", "sec", "secs", "second", "seconds"}
TIME = re.compile(r"(-?)(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d*)?|[.,]\d+)\s*s?")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
BUNDLE = re.compile(r"(\w+)\.split(\d+)")


def csv_or_json(paths: list[Path], split: str | None, media: Media) -> Rows:
    """Rows of csv files (commas, semicolons or tabs) and lists of JSON objects: a video, start and end or their length,
    a label or a sentence, a split. Times are seconds or hh:mm:ss. Without times labels are of whole videos; a sentence
    whose times are blank is nowhere in its video. Which columns are read is reported.
    """
    events = []
    for path in files_below(paths, "*.csv", "*.tsv", "*.json*"):
        names, records = _records(path, media)
        columns = _columns(names)
        read = ", ".join(f"{role} from {name!r}" for role, name in columns.items())
        others = ", ".join(repr(name) for name in names if name not in columns.values())
        where = f"{path}: its columns are {', '.join(map(repr, names)) or 'none'}"
        media.problems.add(f"file read by its columns: {read}" + (f"; not read: {others}" if others else ""), str(path))
        if "video" not in columns or not {"label", "query"} & set(columns):
            raise ManifestError(f"{where}; expected video, start, end, label or query, and perhaps split in line 1")
        has_start, has_end = "start" in columns, bool({"end", "length"} & set(columns))
        timed = "segment" in columns or (has_start and has_end)
        if has_start != has_end or ("query" in columns and not timed):
            raise ManifestError(f"{where}; expected a start and an end in seconds or hh:mm:ss")
        for place, record in records:
            if not any(value or value == 0 for value in record.values()):  # the blank last lines of a spreadsheet
                continue
            if None in record or None in record.values():
                raise ManifestError(f"{place}: {'more' if None in record else 'fewer'} values than columns in line 1")
            event = _event(place, {role: record.get(name, "") for role, name in columns.items()})
            if timed and event.label and event.segment is None:
                raise ManifestError(f"{place}: {event.label!r} has no start and end")
            if event.segment and not (event.label or event.query):
                raise ManifestError(f"{place}: {event.segment} has no label and no sentence")
            events.append(event)
    if not events:
        raise ManifestError(f"{paths[0]}: no rows below the header")
    return rows_of(events, split, media)


def _records(path: Path, media: Media) -> tuple[list[str], list[tuple[str, dict]]]:
    """The names of the columns or keys of a file, and (place, row) of each row; a JSON null is a blank."""
    if path.suffix.lower() in (".json", ".jsonl"):
        values = {str(path): read_json(object, path, media.problems)} if path.suffix.lower() == ".json" else {}
        for number, line in read_lines(path) if not values else ():
            values[f"{path}:{number}"] = parse_as(object, line, f"{path}:{number}")
        rows = []
        for place, value in values.items():
            for number, row in enumerate(_flat(value, {})):
                rows.append((f"{place}: row {number}", {k: "" if v is None else v for k, v in row.items()}))
        return list(dict.fromkeys(key for _, row in rows for key in row)), rows
    header = read_text(path).lstrip().split("\n", 1)[0]
    return read_csv(path, max(",;\t", key=header.count))


def _flat(value: object, outer: dict) -> Iterator[dict]:
    """Every innermost object of nested lists, with the values of those around it: a video's segments with its name."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item, outer)
    elif isinstance(value, dict):
        lists = {key: one for key, one in value.items() if one and isinstance(one, list) and isinstance(one[0], dict)}
        outer = outer | {key: one for key, one in value.items() if key not in lists}
        for one in lists.values():
            yield from _flat(one, outer)
        if not lists:
            yield outer


def _columns(names: list[str]) -> dict[str, str]:
    """What each column is, by its name."""
    spelled = {}
    for name in names:
        words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        spelled.setdefault("_".join(word for word in words if word not in UNITS), name)
    found = {}
    for role, spellings in COLUMNS.items():
        for name in spellings.split():
            if name in spelled and role not in found and spelled[name] not in found.values():
                found[role] = spelled[name]
    if "end" in found:
        found.pop("length", None)  # it may be the segment's or the video's
    return found


def _event(place: str, row: dict[str, object]) -> Event:
    texts = {role: "" if role == "segment" else str(value).strip() for role, value in row.items()}
    if not texts["video"]:
        raise ManifestError(f"{place}: no video in this row")
    segment = [value for role in ("start", "end", "length") if (value := texts.get(role))]
    segment = row["segment"] if isinstance(row.get("segment"), list) else segment
    try:
        times = [seconds_of(value) for value in segment]
    except (TypeError, ValueError):
        raise ManifestError(f"{place}: times must be seconds or hh:mm:ss, got {segment}") from None
    if len(times) not in (0, 2):
        raise ManifestError(f"{place}: expected a start and an end, got {segment}")
    if times and texts.get("length"):
        times[1] += times[0]
    named = {"split": texts.get("split", "").lower(), "label": texts.get("label", ""), "query": texts.get("query", "")}
    return Event(place=place, video=texts["video"], segment=times or None, **named)


def seconds_of(value: object) -> float:
    """Seconds of a number or of a text like 12.5, 12,5 s, 1:02.5 or 00:01:02,500. Raises ValueError."""
    if is_number(value):
        return float(value)
    found = TIME.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"not a time: {value!r}")
    sign, hours, minutes, seconds = found.groups()
    total = 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds.replace(",", "."))
    return -total if sign else total


def folder(paths: list[Path], split: str | None, media: Media) -> Rows:
    """Clips in folders named by their class, CLASS/clip.mp4 or SPLIT/CLASS/clip.mp4: the label is of the whole clip."""
    if len(paths) > 1 or not paths[0].is_dir():
        raise MissingError(f"{paths[0]}: expected one folder with a folder of clips for each class")
    media.videos, events = paths[0], []
    for path in sorted(video_files(paths[0])):
        file = path.relative_to(paths[0])
        if path.suffix.lower() not in EXTENSIONS:
            continue
        *outer, label = file.parts[:-1] or ("",)
        media.problems.add("clip that is in no folder of a class: left out", str(path), not label)
        stated = outer[0].lower() if outer and outer[0].lower() in SPLITS else ""
        if label:
            events.append(Event(place=str(path), video=file.as_posix(), split=stated, label=label))
    if not events:
        raise MissingError(f"{paths[0]}: no clips in folders named by their class (CLASS/clip.mp4)")
    return rows_of(events, split, media)


def mstcn(paths: list[Path], split: str | None, media: Media) -> Rows:
    """MS-TCN's files: groundTruth/VIDEO.txt with a label a frame, mapping.txt with `0 label` lines, and lists of names,
    splits/train.split1.bundle. With several folds the splits are train1, test1, train2, …; `background` is no label.
    A frame lasts 1 / fps, as --fps or the videos say.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    bundles = [file for file in files if file.suffix == ".bundle"]
    mapping = next((file for file in files if file.name == "mapping.txt"), None)
    texts = [file for file in files if file.suffix == ".txt" and file != mapping]
    truth = {file.stem: file for file in [one for one in texts if one.parent.name == "groundTruth"] or texts}
    if not truth:
        raise MissingError(f"{paths[0]}: no groundTruth/*.txt with a label for each frame")
    classes = [line.split(maxsplit=1)[-1].strip() for _, line in read_lines(mapping)] if mapping else []
    splits, folds = {}, {found[2] for file in bundles if (found := BUNDLE.match(file.name))}
    for file in bundles:
        found = BUNDLE.match(file.name)
        name = f"{found[1]}{found[2]}" if found and len(folds) > 1 else found[1] if found else file.stem
        for number, line in read_lines(file):
            video = Path(line.strip()).stem
            media.problems.add("video of a bundle without labels: left out", f"{file}:{number}", video not in truth)
            splits.setdefault(video, []).append(name)
    events = []
    for video, file in truth.items():
        media.problems.add("video in no bundle: left out", video, bool(bundles) and video not in splits)
        for name in splits.get(video, [] if bundles else [""]):
            events += _frame_events(video, file, name, classes, media)
    rows, labels = rows_of(events, split, media)
    return rows, [label for label in classes if label.lower() != "background"] or labels


def _frame_events(video: str, file: Path, split: str, classes: list[str], media: Media) -> Iterator[Event]:
    """An event for each run of equal labels."""
    labels = [line.strip() for _, line in read_lines(file)]
    for number, label in enumerate(labels, start=1):
        if classes and label not in classes:
            raise ManifestError(f"{file}:{number}: label {label!r} is not in mapping.txt")
    fps = media.rate(video, str(file))
    facts = media.known.get(video)
    differs = facts is not None and abs(len(labels) - facts.num_frames) > 0.02 * len(labels) + 2
    media.problems.add("file with more or fewer labels than its video has frames", str(file), differs)
    duration = facts.end_seconds if facts else len(labels) / fps
    known = {"place": str(file), "video": video, "split": split, "duration_seconds": duration}
    yield Event(**known)
    edges = [0, *(k for k in range(1, len(labels)) if labels[k] != labels[k - 1]), len(labels)]
    for first, after in pairwise(edges):
        if labels[first].lower() != "background":
            yield Event(**known, label=labels[first], segment=[first / fps, after / fps])
