"""The files that an evaluation writes."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unloc.errors import InputError
from unloc.files import file_sha256, write_file

RECORD = ".unloc-eval.json"


class Outputs:
    """The files that one evaluation writes: never its inputs, nor files that no evaluation wrote.

    A hidden file `.unloc-eval.json` in each folder keeps their hashes (null while they are written): a later evaluation
    may replace what is listed and unchanged.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._inputs = {path.resolve() for path in inputs}
        self._paths: list[Path] = []

    def add(self, path: Path, option: str) -> Path:
        """The path, if it may be written. Raises InputError if not."""
        target, written = path.resolve(), _record(path.parent).get(path.name, "")
        if target in self._inputs:
            reason = "is an input of this evaluation"
        elif target in (other.resolve() for other in self._paths):
            reason = "is another output of this evaluation too"
        elif path.is_dir() or path.name == RECORD:
            reason = "is a folder" if path.is_dir() else "is a record of eval"
        elif path.is_symlink() or (path.exists() and written not in (None, file_sha256(path))):
            reason = "exists, and unloc eval did not write it (or it was changed since)"
        else:
            self._paths.append(path)
            return path
        raise InputError(f"{option} {path} {reason}; name another file")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The files are written within this block. Raises InputError if a folder cannot be written."""
        self._update_records(lambda path: None)
        try:
            yield
        finally:
            self._update_records(lambda path: file_sha256(path) if path.is_file() else "")

    def _update_records(self, hash_of: Callable[[Path], str | None]) -> None:
        for folder in {path.parent for path in self._paths}:
            known = _record(folder) | {path.name: hash_of(path) for path in self._paths if path.parent == folder}
            try:
                write_file(folder / RECORD, json.dumps(known, indent=1) + "\n")
            except OSError as error:
                raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None


def _record(folder: Path) -> dict[str, str | None]:
    """Name to hash of the files that evaluations wrote into a folder."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
