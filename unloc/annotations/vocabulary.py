"""Names of classes compared with the names a tower was pretrained on: is an "unseen" class really unseen?"""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

from unloc.annotations.official import read_text
from unloc.errors import ManifestError, MissingError

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Names of a list: a csv with a column `name`, or text with one name a line.

    Raises MissingError where the file is absent, ManifestError where it holds no name.
    """
    if not path.is_file():
        raise MissingError(f"vocabulary {path} does not exist")
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        if "name" not in (reader.fieldnames or ()):
            raise ManifestError(f"{path}:1: no column `name`; it has {', '.join(reader.fieldnames or ()) or 'none'}")
        names = [row["name"] or "" for row in reader]
    else:
        names = text.split("\n")
    kept = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not kept:
        raise ManifestError(f"{path}: no name in this vocabulary")
    return kept


def words_of(name: str) -> frozenset[str]:
    """The words of a name, whatever their order, case, underscores or capitals: BaseballPitch has two."""
    return frozenset(word.lower() for word in _WORDS.findall(name))


def names_in_vocabulary(names: Collection[str], vocabulary: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Which names the vocabulary holds, each with the entries that do.

    "same": the same words in any order; "within": all words of one of the two are among those of the other.
    The words must be equal in spelling: "skipping rope" is "Rope skipping", but "kayak" is not "kayaking".
    """
    entries = [(entry, words_of(entry)) for entry in vocabulary]
    found: dict[str, dict[str, list[str]]] = {"same": {}, "within": {}}
    for name in names:
        words = words_of(name)
        same = [entry for entry, others in entries if words and words == others]
        within = [entry for entry, others in entries if words and others and (words < others or others < words)]
        if same:
            found["same"][name] = same
        elif within:
            found["within"][name] = within
    return found
