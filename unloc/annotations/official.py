"""Reading official annotation files: values with their place, splits, folders, and repairs that are told.

Every reader raises ManifestError with file and place where a value is not what the format says.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unloc.annotations.rows import is_number, is_segment
from unloc.errors import ManifestError, MissingError

_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|validation|test|testing)(_\d)?(?=[_.-]|$)")


@dataclass
class Repairs:
    """What was changed: for each rule the places, in order. Nothing is changed that is not told here."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, place: str) -> None:
        """Tell one use of a rule."""
        self.places.setdefault(rule, []).append(place)

    def lines(self) -> Iterator[str]:
        """One line a rule: how often, and where first."""
        for rule, places in self.places.items():
            yield f"{len(places)} × {rule} (first: {places[0]})"


def read_text(path: Path) -> str:
    """The file's text. Raises MissingError where it is not there."""
    if not path.is_file():
        raise MissingError(f"annotations {path} do not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not text (byte {error.start} is not UTF-8); expected annotations") from None


def read_json(path: Path, repairs: Repairs) -> object:
    """The content of a JSON file; of keys that stand twice in one object the last counts, and that is told."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    repairs.add("key stands twice in one object: the last one counts", f"{path}: {key!r}")
                seen.add(key)
        return content

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
    except RecursionError:
        raise ManifestError(f"{path}: not annotations: nested too deeply") from None


def read_json_object(path: Path, repairs: Repairs) -> dict:
    """A JSON object."""
    return an_object(read_json(path, repairs), str(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; only line feeds end a line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of every line."""
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        yield place, an_object(parse_json_line(line, place), place)


def parse_json_line(line: str, place: str) -> object:
    """The JSON value of a line."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{place}: not JSON ({error.msg}); is the file cut off?") from None
    except RecursionError:
        raise ManifestError(f"{place}: not annotations: nested too deeply") from None


# -- values with their place ----------------------------------------------------------------------------------------


def an_object(value: object, place: str) -> dict:
    """The value where it is a JSON object."""
    if not isinstance(value, dict):
        raise ManifestError(f"{place}: expected a JSON object, got {_brief(value)}")
    return value


def a_list(entry: dict, key: str, place: str) -> list:
    """`entry[key]` where it is a list."""
    return _of_type(list, "a list", entry, key, place)


def a_text(entry: dict, key: str, place: str) -> str:
    """`entry[key]` where it is a string."""
    return _of_type(str, "a string", entry, key, place)


def a_name(entry: dict, key: str, place: str) -> str:
    """`entry[key]` where it is a string that says something."""
    value = a_text(entry, key, place)
    if not value.strip():
        raise ManifestError(f"{place}: {key} is empty")
    return value


def _of_type(kind: type, words: str, entry: dict, key: str, place: str) -> object:
    value = _present(entry, key, place)
    if not isinstance(value, kind):
        raise ManifestError(f"{place}: {key} must be {words}, got {_brief(value)}")
    return value


def an_id(entry: dict, key: str, place: str) -> str:
    """`entry[key]` as a string where it is a string or a whole number."""
    value = _present(entry, key, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{place}: {key} must be an id, got {_brief(value)}")
    return value


def seconds(entry: dict, key: str, place: str) -> float:
    """`entry[key]` where it is a number."""
    value = _present(entry, key, place)
    if not is_number(value):
        raise ManifestError(f"{place}: {key} must be a number of seconds, got {_brief(value)}")
    return float(value)


def a_segment(value: object, place: str) -> list[float]:
    """[start, end] where the value is a pair of numbers, kept as written (reversed ones too)."""
    if not is_segment(value):
        raise ManifestError(f"{place}: expected [start, end] in seconds, got {_brief(value)}")
    return [float(bound) for bound in value]


def _present(entry: dict, key: str, place: str) -> object:
    if key not in entry:
        found = ", ".join(map(str, list(entry)[:8])) or "nothing"
        raise ManifestError(f"{place}: lacks {key}; it has {found}")
    return entry[key]


def _brief(value: object) -> str:
    words = json.dumps(value, ensure_ascii=False, default=str)
    return words if len(words) <= 60 else f"{words[:57]}…"


def sentence(text: str, place: str, repairs: Repairs) -> str:
    """The sentence without the line breaks and the surplus blanks that releases carry."""
    cleaned = " ".join(text.split())
    if cleaned != text:
        repairs.add("sentence with surplus blanks or line breaks: cleaned", place)
    return cleaned


# -- files and splits -----------------------------------------------------------------------------------------------


def split_of_name(path: Path) -> str | None:
    """The split that a file's name states (`charades_sta_test.txt`, `val_2.json`), or None.

    Raises ManifestError where the name states several.
    """
    found = {name + number for name, number in _SPLIT.findall(path.stem.lower())}
    if len(found) > 1:
        raise ManifestError(f"{path}: its name states several splits ({', '.join(sorted(found))}); give --split")
    return found.pop() if found else None


def files_with_splits(files: list[Path], split: str | None, repairs: Repairs) -> list[tuple[Path, str]]:
    """Every file with its split: the one its name states, or the one given.

    With `split`: where names of several files state splits, the files that state this one are kept; otherwise `split`
    is the name of them all. Raises ManifestError where a split cannot be told.
    """
    if split is None:
        stated = [(path, split_of_name(path)) for path in files]
        unnamed = next((path for path, name in stated if name is None), None)
        if unnamed is not None:
            raise ManifestError(f"{unnamed}: its name does not say which split it is; give --split")
        return stated
    if len(files) == 1:
        return [(files[0], split)]
    stated = [(path, _lenient_split(path)) for path in files]
    if not any(name == split for _, name in stated):
        names = list(dict.fromkeys(name for _, name in stated if name))
        if len(names) > 1:
            raise ManifestError(
                f"--split {split}: none of the files states it (they state {', '.join(names)}); give one file, or "
                f"one of these splits"
            )
        return [(path, split) for path in files]
    for path, name in stated:
        if name not in (None, split):
            repairs.add(f"file of another split than --split {split}: left out", str(path))
    return [(path, split) for path, name in stated if name in (None, split)]


def _lenient_split(path: Path) -> str | None:
    try:
        return split_of_name(path)
    except ManifestError:
        return None


def files_below(paths: list[Path], *patterns: str, but: str = "") -> list[Path]:
    """The paths, each once, folders replaced by those of their files that match the first pattern that any matches.

    Files that match `but` are passed over; case does not count. Raises MissingError for what is not there.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise MissingError(f"annotations {path} do not exist")
        if not path.is_dir():
            found.append(path)
            continue
        files = [item for item in sorted(path.iterdir()) if item.is_file() and not (but and _matches(item, but))]
        matches = next(filter(None, ([item for item in files if _matches(item, one)] for one in patterns)), None)
        if matches is None:
            raise MissingError(f"annotations {path}: nothing in this folder is called {' or '.join(patterns)}")
        found += matches
    return list(dict.fromkeys(found))


def _matches(path: Path, pattern: str) -> bool:
    return Path(path.name.lower()).match(pattern)
