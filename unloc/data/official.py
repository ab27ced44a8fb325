"""Reading official annotation files: JSON with the place of what is wrong, and the split a name or subset states."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from unloc.errors import ManifestError, MissingError


def read_text(path: Path) -> str:
    """The file's text. Raises MissingError where it is not there."""
    if not path.is_file():
        raise MissingError(f"annotations {path} do not exist")
    return path.read_text(encoding="utf-8")


def read_json_object(path: Path) -> dict:
    """A JSON object. Raises ManifestError with file and line."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_database(path: Path, what: str) -> dict[str, dict]:
    """The `database` of ActivityNet, THUMOS14 and COIN files."""
    database = read_json_object(path).get("database")
    if not isinstance(database, dict):
        raise ManifestError(f"{path}: not a {what} file: it has no object `database`")
    return database


def read_json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of every line. Raises ManifestError with file and line."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{path}:{number}: not JSON ({error.msg}); is the file cut off?") from None
        if not isinstance(row, dict):
            raise ManifestError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def need(row: dict, keys: tuple[str, ...], where: str) -> None:
    """Raise ManifestError where keys are missing."""
    missing = [key for key in keys if key not in row]
    if missing:
        raise ManifestError(f"{where}: lacks {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}")


def split_of_name(path: Path, split: str | None) -> str:
    """The split given, or the one in the file's name. Raises ManifestError where neither says it."""
    if split is not None:
        return split
    found = re.search(
        r"(?:^|[_-])(train|training|val|validation|test|testing)((?:_\d+)?)(?=[_.-]|$)", path.stem.lower()
    )
    if found is None:
        raise ManifestError(f"{path}: its name does not say which split it is; give --split")
    return found[1] + found[2]


def files_below(paths: list[Path], pattern: str) -> list[Path]:
    """The paths, folders replaced by the files in them that match. Raises MissingError for what is not there."""
    found = []
    for path in paths:
        if not path.exists():
            raise MissingError(f"annotations {path} do not exist")
        matches = sorted(path.glob(pattern)) if path.is_dir() else [path]
        if not matches:
            raise MissingError(f"annotations {path}: no {pattern} in this folder")
        found += matches
    return found
