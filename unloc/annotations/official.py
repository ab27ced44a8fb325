"""Official annotation files: which files a folder holds, and the split of each."""

import re
from collections.abc import Iterable
from pathlib import Path

from unloc.annotations.problems import Problems
from unloc.errors import ManifestError, MissingError

_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|validation|test|testing)(_\d)?(?=[_.-]|$)")


def sentence(text: str, place: str, problems: Problems) -> str:
    """The sentence without the line breaks and surplus blanks that releases contain."""
    cleaned = " ".join(text.split())
    if cleaned != text:
        problems.add("sentence with surplus blanks or line breaks: cleaned", place)
    return cleaned


def require_split(split: str | None, subsets: Iterable[str], path: Path) -> None:
    """Raise ManifestError where a split is asked for that no video is in; `subsets`: the split of each video."""
    subsets = list(subsets)
    if split is not None and split not in subsets:
        known = ", ".join(f"{name} ({subsets.count(name)} videos)" for name in dict.fromkeys(subsets)) or "no video"
        raise ManifestError(f"{path}: no video of split {split!r}; these annotations have {known}")


def splits_in_name(path: Path) -> list[str]:
    """The splits that a file's name states (`charades_sta_test.txt`, `val_2.json`)."""
    return sorted({name + number for name, number in _SPLIT.findall(path.stem.lower())})


def files_with_splits(files: list[Path], split: str | None, problems: Problems) -> list[tuple[Path, str]]:
    """Every file with its split: the one its name states, or `split`.

    Of several files whose names state splits, `split` keeps those that state it; else it names the split of them all.
    Raises ManifestError where the split of a file is not known.
    """
    stated = [(path, splits_in_name(path)) for path in files]
    if split is None:
        for path, names in stated:
            if len(names) != 1:
                raise ManifestError(f"{path}: its name states {' and '.join(names) or 'no split'}; give --split")
        return [(path, names[0]) for path, names in stated]
    stated = [(path, names[0] if len(names) == 1 else None) for path, names in stated]
    names = list(dict.fromkeys(name for _, name in stated if name))
    if len(files) > 1 and split in names:
        for path, name in stated:
            if name not in (None, split):
                problems.add(f"file of another split than --split {split}: left out", str(path))
        return [(path, split) for path, name in stated if name in (None, split)]
    if len(files) > 1 and len(names) > 1:
        raise ManifestError(
            f"--split {split}: none of the files states it; give one file, or one of {', '.join(names)}"
        )
    return [(path, split) for path in files]


def files_below(paths: list[Path], *patterns: str, but: str = "") -> list[Path]:
    """The paths, each once, folders replaced by those of their files that match the first pattern that any matches.

    Files that match `but` are left out; case does not count. Raises MissingError for a path that does not exist.
    """

    def matches(path: Path, pattern: str) -> bool:
        return Path(path.name.lower()).match(pattern)

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise MissingError(f"annotations {path} do not exist")
        if not path.is_dir():
            found.append(path)
            continue
        files = [item for item in sorted(path.iterdir()) if item.is_file() and not (but and matches(item, but))]
        chosen = next(filter(None, ([item for item in files if matches(item, one)] for one in patterns)), None)
        if chosen is None:
            raise MissingError(f"annotations {path}: no file in this folder is called {' or '.join(patterns)}")
        found += chosen
    return list(dict.fromkeys(found))
