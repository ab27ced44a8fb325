"""Official annotation files: which files a folder holds, the split of each, and what a converter makes of them."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from unloc.annotations.problems import Problems
from unloc.annotations.schema import Row
from unloc.errors import ManifestError, MissingError

Rows = tuple[Sequence[Row], Sequence[str]]
"""Rows of a manifest, and its classes."""
_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|validation|test|testing)(_\d)?(?=[_.-]|$)")


def sentence(text: str, place: str, problems: Problems) -> str:
    """The sentence without the line breaks and surplus blanks that releases contain."""
    cleaned = " ".join(text.split())
    problems.add("sentence with surplus blanks or line breaks: cleaned", place, cleaned != text)
    return cleaned


def splits_in_name(path: Path) -> list[str]:
    """The splits that a file's name states (`charades_sta_test.txt`, `val_2.json`)."""
    return sorted({name + number for name, number in _SPLIT.findall(path.stem.lower())})


def files_with_splits(files: list[Path], split: str | None, problems: Problems) -> list[tuple[Path, str]]:
    """Every file with its split: the one its name states, or `split`.

    Of several files whose names state splits, `split` keeps those that state it; else it names the split of them all.
    Raises ManifestError where the split of a file is not known.
    """
    stated = {path: splits_in_name(path) for path in files}
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


def files_below(paths: list[Path], *patterns: str, but: str = "") -> list[Path]:
    """The paths, each once, folders replaced by those of their files that match the first pattern that any matches.

    Files that match `but` are left out; case does not count. Raises MissingError for a path that does not exist.
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
