"""Text, JSON and values of annotation files, read as a type: the one check of manifests and of official annotations.

A type is `str`, `float` (any number, as written), `object`, `list[T]`, `dict[str, T]`, `T | None`, a dataclass (one
field a key; the field of a key that is a Python keyword ends with `_`), or one of

    Name     a string that is not blank; a whole number becomes a string (QVHighlights writes qids as numbers)
    Segment  [start, end] in seconds, in the order written
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NewType, get_args, get_origin, get_type_hints

from unloc.annotations.problems import Problems
from unloc.errors import ManifestError, MissingError
from unloc.files import url_of

Name = NewType("Name", str)
Segment = NewType("Segment", list)
_DESCRIPTIONS = {str: "a string", float: "a number", Name: "a non-empty string", Segment: "[start, end] in seconds"}
_types_of = cache(get_type_hints)


def read_text(path: Path | str) -> str:
    """The text of a file or URL. Raises MissingError where it does not exist, ManifestError where it is not text."""
    if url := url_of(path):
        from unloc.cache.object_store import read_url  # here: it imports zarr

        content = read_url(url)
    elif Path(path).is_dir():
        raise ManifestError(f"{path} is a folder; expected a file")
    elif not Path(path).is_file():
        raise MissingError(f"{path} does not exist")
    else:
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not text (byte {error.start} is not UTF-8)") from None


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; only line feeds end a line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


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
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text else ""
        raise ManifestError(f"{place}{line}: not JSON ({error.msg}); is the file cut off?") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists nested too deeply
        raise ManifestError(f"{place}: not JSON that can be read ({error})") from None


def read_json(kind: Any, path: Path, problems: Problems | None = None) -> Any:
    """The JSON value of a file, as that type. Raises as `read_text`, `parse_json` and `typed`."""
    return typed(kind, parse_json(read_text(path), str(path), problems), str(path))


def typed(kind: Any, value: object, place: str) -> Any:
    """`read_as` with a ManifestError that names the place."""
    try:
        return read_as(kind, value)
    except ValueError as error:
        raise ManifestError(f"{place}: {error}") from None


def read_as(kind: Any, value: object, name: str = "") -> Any:
    """The value as that type; `name` says where it is. Raises ValueError with the name, what was expected and got."""
    parts = get_args(kind)
    if type(None) in parts:
        return None if value is None else read_as(parts[0], value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        types = [(field, field.rstrip("_"), part) for field, part in _types_of(kind).items()]
        missing = [key for field, key, _ in types if key not in value and not hasattr(kind, field)]
        if missing:
            has = ", ".join(list(value)[:8]) or "nothing"
            raise ValueError(f"{name}: lacks {', '.join(missing)}; it has {has}".removeprefix(": "))
        read = {
            field: read_as(part, value[key], f"{name}.{key}".lstrip(".")) for field, key, part in types if key in value
        }
        try:
            return kind(**read)
        except ValueError as error:  # a check of its own
            raise ValueError(f"{name}: {error}".removeprefix(": ")) from None
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: read_as(parts[1], item, f"{name}[{key[:60]!r}]") for key, item in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        return [read_as(parts[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if kind is object:
        return value
    if kind is Segment and isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return [float(bound) for bound in value]
    if kind is Name and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if (kind is Name and isinstance(value, str) and value.strip()) or (kind is str and isinstance(value, str)):
        return value
    if kind is float and is_number(value):
        return value
    expected = _DESCRIPTIONS.get(kind, "a list" if get_origin(kind) is list else "a JSON object")
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
