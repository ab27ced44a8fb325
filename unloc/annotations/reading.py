"""Annotation files: choosing them in a folder, reading text, csv and JSON, and checking values against a type.

A type is `str`, `float` (any number, as written), `object`, `list[T]`, `dict[str, T]`, `T | None`, a dataclass (one
field a key), a dict of keys and their types (those that admit None may be absent), or one of

    Name     a string that is not blank; a whole number becomes a string (QVHighlights writes qids as numbers)
    Segment  [start, end] in seconds, in the order written
"""

import csv
import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NewType, get_args, get_origin, get_type_hints

from unloc.errors import ManifestError, MissingError
from unloc.files import url_of, write_file

Name = NewType("Name", str)
Segment = NewType("Segment", list)
_DESCRIPTIONS = {str: "a string", float: "a number", Name: "a non-empty string", Segment: "[start, end] in seconds"}
_types_of = cache(get_type_hints)
_ID_COLUMNS = ("video_id", "video", "video_name", "video-id", "vid", "id", "name")
_PREFIXES = re.compile(r"^(v_)+")  # ActivityNet's; some YouTube ids begin with `v_` themselves


@dataclass
class Problems:
    """For each kind of problem, or of change, how often it occurs and where."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Log `count` problems of a kind, found at one place; none where the count is 0."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            # Line breaks and lone surrogates of a foreign file are escaped: each kind is printed on one line.
            place = place.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
            self.places.setdefault(kind, []).append(place)

    def lines(self) -> list[str]:
        """One line a kind: count, kind, first place."""
        return [f"{count} × {kind} (first: {self.places[kind][0]})" for kind, count in self.counts.items()]

    def save(self, path: Path) -> None:
        """Write each with its place as a JSON line."""
        rows = [{"change": kind, "place": place} for kind, places in self.places.items() for place in places]
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def files_below(paths: list[Path], *patterns: str, but: str = "") -> list[Path]:
    """The paths without repeats; in place of a folder its files that match the first pattern with any match (ignoring
    case), except those like `but`. Raises MissingError for a path that does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise MissingError(f"annotations {path} do not exist")
        if not path.is_dir():
            found.append(path)
            continue
        files = [item for item in sorted(path.iterdir()) if item.is_file() and not fnmatchcase(item.name.lower(), but)]
        matches = ([item for item in files if fnmatchcase(item.name.lower(), pattern)] for pattern in patterns)
        chosen = next(filter(None, matches), None)
        if chosen is None:
            raise MissingError(f"annotations {path}: no file in this folder is called {' or '.join(patterns)}")
        found += chosen
    return list(dict.fromkeys(found))


def read_text(path: Path | str) -> str:
    """The text of a file or URL. Raises MissingError where it does not exist, ManifestError where it is not text."""
    if Path(path).is_dir():
        raise ManifestError(f"{path} is a folder; expected a file")
    url = url_of(path)
    try:
        if url:
            from unloc.cache.object_store import ObjectStore  # here: fsspec takes a moment

            folder, _, name = url.rpartition("/")
            content = ObjectStore(folder).read(name)
        else:
            content = Path(path).read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise MissingError(f"{url or path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not text (byte {error.start} is not UTF-8)") from None


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; only line feeds end a line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def read_csv(path: Path, delimiter: str = ",") -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The columns of a csv, and (place, row) of its lines. Raises ManifestError where it is not csv."""
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter=delimiter)
    try:
        rows = [(f"{path}:{reader.line_num}", row) for row in reader]
        return list(reader.fieldnames or ()), rows
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}: not csv that can be read ({error})") from None


def parse_json(text: str, place: str, problems: Problems | None = None) -> object:
    """The JSON value of a file or a line; of keys repeated in one object the last counts, which is logged."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                problems.add("key repeated in one object: the last one counts", f"{place}: {key!r}", count - 1)
        return content

    try:
        return json.loads(text, object_pairs_hook=None if problems is None else unique)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, lists nested too deeply
        raise ManifestError(f"{place}: not JSON that can be read ({error}); is the file cut off?") from None


def read_json(kind: Any, path: Path, problems: Problems | None = None) -> Any:
    """The JSON value of a file, as that type. Raises as `read_text` and `parse_as`."""
    return parse_as(kind, read_text(path), str(path), problems)


def parse_as(kind: Any, text: str, place: str, problems: Problems | None = None) -> Any:
    """The JSON value of a file or a line, as that type. Raises as `parse_json` and `typed`."""
    return typed(kind, parse_json(text, place, problems), place)


def typed(kind: Any, value: object, place: str) -> Any:
    """`read_as` with a ManifestError that names the place."""
    try:
        return read_as(kind, value)
    except ValueError as error:
        raise ManifestError(f"{place}: {error}") from None


def read_as(kind: Any, value: object, name: str = "") -> Any:
    """The value as that type; `name` says where it is. Raises ValueError with the name, what was expected and got."""
    parts, origin = get_args(kind), get_origin(kind)
    if kind is object or (value is None and type(None) in parts):
        return value
    if type(None) in parts:
        return read_as(parts[0], value, name)
    if isinstance(value, dict) and (isinstance(kind, dict) or is_dataclass(kind)):
        is_row, types = is_dataclass(kind), kind if isinstance(kind, dict) else _types_of(kind)
        absent = [key for key in types if key not in value]
        missing = [key for key in absent if not (hasattr(kind, key) if is_row else type(None) in get_args(types[key]))]
        if missing:
            has = ", ".join(list(value)[:8]) or "nothing"
            raise ValueError(f"{name}: lacks {', '.join(missing)}; it has {has}".removeprefix(": "))
        read = {key: read_as(types[key], value[key], f"{name}.{key}".lstrip(".")) for key in types if key in value}
        return kind(**read) if is_row else dict.fromkeys(absent) | read
    if origin is dict and isinstance(value, dict):
        return {key: read_as(parts[1], item, f"{name}[{key[:60]!r}]") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [read_as(parts[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if kind is Segment and isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return [float(bound) for bound in value]
    if kind is Name and type(value) is int:
        return str(value)
    if isinstance(value, str) and (kind is str or (kind is Name and value.strip())):
        return value
    if kind is float and is_number(value):
        return value
    structure = "a list" if origin is list else "a JSON object"
    expected = next((text for simple, text in _DESCRIPTIONS.items() if kind is simple), structure)
    raise ValueError(f"{name or 'value'} must be {expected}, got {brief(value)}")


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold (true and false are not numbers)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return not sys.float_info.max < abs(value) < math.inf


def brief(value: object) -> str:
    """The value as JSON, at most 60 characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_video_list(path: Path) -> frozenset[str]:
    """The video ids of a list, each once, without ActivityNet's `v_`: JSON (a list of ids, an object keyed by id, or
    an object of lists of ids), a csv with a column of ids, or text with the id first in each line.
    """
    if path.suffix.lower() == ".json":
        content = read_json(object, path)
        ids = list(content) if isinstance(content, dict | list) else []
        if isinstance(content, dict) and all(isinstance(one, list) for one in content.values()):
            ids = [video_id for one in content.values() for video_id in one] or ids
        if not all(isinstance(video_id, str) for video_id in ids) or not ids:
            raise ManifestError(f"{path}: expected a list of video ids or an object keyed by them")
    else:
        ids = [line if path.suffix.lower() == ".csv" else line.split()[0] for line in read_names(path, *_ID_COLUMNS)]
    return frozenset(_PREFIXES.sub("", video_id.strip()) for video_id in ids)


def read_names(path: Path, *columns: str) -> tuple[str, ...]:
    """The first of these columns that a csv has, or the lines of another file, each once. Raises ManifestError."""
    if path.suffix.lower() == ".csv":
        found, rows = read_csv(path)
        column = next((name for name in columns if name in found), None)
        if column is None:
            raise ManifestError(f"{path}:1: no column `{'` or `'.join(columns)}`; it has {found}")
        names = [row[column] or "" for _, row in rows]
    else:
        names = read_text(path).split("\n")
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ManifestError(f"{path}: no {'video id' if 'video_id' in columns else 'name'} in this list")
    return names


def listed_filter(without: Iterable[Path], only: Iterable[Path]) -> Callable[[str], bool]:
    """Whether a video is in all lists of `only` and in none of `without`."""
    blocked, kept = ([read_video_list(path) for path in paths] for paths in (without, only))

    def keep(video_id: str) -> bool:
        bare = _PREFIXES.sub("", video_id)
        return all(bare in ids for ids in kept) and not any(bare in ids for ids in blocked)

    return keep
