"""What an evaluation may write: never over a file that it reads, and over no file that no evaluation wrote."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unloc.errors import InputError
from unloc.files import file_sha256, write_file

RECORD = ".unloc-eval.json"


class Outputs:
    """The files that one evaluation writes.

    Beside them a hidden file `.unloc-eval.json` keeps their hashes (null while they are written): a later evaluation
    may replace what it names and what has not changed since. Any other file that exists stays.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._inputs = {path.resolve() for path in inputs}
        self._claimed: list[Path] = []

    def claim(self, path: Path, option: str) -> Path:
        """The path, where it may be written. Raises InputError where it may not."""
        if path.resolve() in self._inputs:
            raise InputError(f"{option} {path} is an input of this evaluation; name another file")
        if path.resolve() in (claimed.resolve() for claimed in self._claimed):
            raise InputError(f"{option} {path} is another output of this evaluation too; name another file")
        if path.is_dir() or path.name == RECORD:
            raise InputError(f"{option} {path} is {'a folder' if path.is_dir() else 'a record of eval'}; name a file")
        known = _record(path.parent)
        ours = path.name in known and (not path.exists() or known[path.name] in (None, file_sha256(path)))
        if path.is_symlink() or (path.exists() and not ours):
            raise InputError(
                f"{option} {path} exists, and unloc eval did not write it (or it was changed since): name another "
                "file, or remove it"
            )
        self._claimed.append(path)
        return path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within it the claimed files are written. Raises InputError where their folder refuses."""
        self._remember(lambda path: None)
        try:
            yield
        finally:
            self._remember(lambda path: file_sha256(path) if path.is_file() else "")

    def _remember(self, hash_of: Callable[[Path], str | None]) -> None:
        for folder in {path.parent for path in self._claimed}:
            known = _record(folder) | {path.name: hash_of(path) for path in self._claimed if path.parent == folder}
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
