"""Parts of a manifest: listed videos, and the seen and unseen classes of zero-shot evaluation.

Class lists are those of EffPrompt and STALE: a folder holds `train/split_0.list` (seen) and `test/split_0.list`
(unseen), one class name a line; customary are ten random splits each of 50 % and 75 % seen classes (UnLoc Table 7).
"""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.annotations.values import read_json, read_lines, read_text
from unloc.errors import InputError, ManifestError, MissingError

_ID_COLUMNS = ("video_id", "video", "video_name", "video-id", "vid", "id", "name")
_PREFIXES = re.compile(r"^(v_)+")  # ActivityNet's; some YouTube ids begin with `v_` themselves
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_CONSONANTS, _VOWELS = tuple("bdfgklmnprstvz"), tuple("aeiou")


# -- lists of videos ------------------------------------------------------------------------------------------------


def read_video_list(path: Path) -> frozenset[str]:
    """The video ids of a list, each once, without ActivityNet's `v_`.

    Forms: JSON (a list of ids, an object keyed by id, or an object of lists of ids), a csv with a column of ids, or
    text with the id first in each line. Raises MissingError where the file is absent, ManifestError where it is not
    such a list.
    """
    if path.suffix.lower() == ".json":
        content = read_json(object, path)
        ids = list(content) if isinstance(content, dict | list) else []
        if isinstance(content, dict) and all(isinstance(one, list) for one in content.values()):
            ids = [video_id for one in content.values() for video_id in one] or ids
        if not all(isinstance(video_id, str) for video_id in ids) or not ids:
            raise ManifestError(f"{path}: expected a list of video ids or an object keyed by them")
    elif path.suffix.lower() == ".csv":
        ids = _csv_column(path, *_ID_COLUMNS)
    else:
        ids = [line.split()[0] for _, line in read_lines(path)]
    found = frozenset(_PREFIXES.sub("", video_id.strip()) for video_id in ids)
    if not found:
        raise ManifestError(f"{path}: no video id in this list")
    return found


def _csv_column(path: Path, *names: str) -> list[str]:
    """The values of the first of these columns that the csv has, without empty ones."""
    reader = csv.DictReader(io.StringIO(read_text(path)))
    column = next((name for name in names if name in (reader.fieldnames or ())), None)
    if column is None:
        raise ManifestError(f"{path}:1: no column `{'` or `'.join(names)}`; it has {reader.fieldnames}")
    return [row[column] for row in reader if row[column]]


def restricted(manifest: Manifest, keep: Callable[[str], bool], split: str | None = None) -> Manifest:
    """The manifest with those videos for whose id `keep` is true; with `split`, other splits stay whole."""
    return manifest.filter(
        lambda table: table["video_id"].map(keep).astype(bool) | (split is not None and table["split"] != split)
    )


def listed_filter(without: Iterable[Path], only: Iterable[Path]) -> Callable[[str], bool]:
    """Whether a video is in all lists of `only` and in none of `without`."""
    blocked, kept = ([read_video_list(path) for path in paths] for paths in (without, only))

    def keep(video_id: str) -> bool:
        bare = _PREFIXES.sub("", video_id)
        return all(bare in ids for ids in kept) and not any(bare in ids for ids in blocked)

    return keep


def apply_lists(manifest: Manifest, without: Iterable[Path], only: Iterable[Path], problems: Problems) -> Manifest:
    """The manifest without the videos of the lists `without` and with those of `only`; each left out is logged.

    Raises InputError where a list leaves no video.
    """
    filters = {f"--without {path}": listed_filter([path], []) for path in without}
    for option, keep in (filters | {f"--only {path}": listed_filter([], [path]) for path in only}).items():
        for video_id in manifest.videos["video_id"].unique():
            problems.add(f"video left out by {option}", video_id, not keep(video_id))
        before, manifest = len(manifest.videos), restricted(manifest, keep)
        if manifest.videos.empty:
            raise InputError(f"{option}: no video is left of {before}; are its ids of this dataset?")
    return manifest


# -- class splits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """One division of a dataset's classes. Raises ManifestError where both sides share a class (a leak)."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        leaked = sorted(set(self.seen) & set(self.unseen))
        if leaked:
            raise ManifestError(f"{self.name}: {len(leaked)} classes are both seen and unseen, first {leaked[0]!r}")


def read_class_list(path: Path) -> tuple[str, ...]:
    """The class names of a list in its order. Raises ManifestError where one is repeated or there is none."""
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        if line.strip() in names:
            raise ManifestError(f"{path}:{number}: {line.strip()!r} is in line {names[line.strip()]} too")
        names[line.strip()] = number
    if not names:
        raise ManifestError(f"{path}: no class name in this list")
    return tuple(names)


def read_class_splits(folder: Path) -> list[ClassSplit]:
    """All splits below a folder, ordered by their numbers and named by their path, such as `train_50_test_50/split_3`.

    Raises MissingError where there is none or a side is missing, ManifestError for a leak.
    """

    def order(path: Path) -> tuple:
        return str(path.parent), int("0" + "".join(filter(str.isdigit, path.stem))), path.name

    found = []
    for path in sorted(folder.rglob("train/*.list"), key=order):
        other = path.parent.parent / "test" / path.name
        if not other.is_file():
            raise MissingError(f"{path}: its unseen side {other} does not exist")
        name = (path.parent.parent.relative_to(folder) / path.stem).as_posix()
        found.append(ClassSplit(name=name, seen=read_class_list(path), unseen=read_class_list(other)))
    if not found:
        reason = f"no train/*.list below {folder}" if folder.is_dir() else f"folder {folder} does not exist"
        raise MissingError(f"class lists: {reason}")
    return found


def check_class_split(split: ClassSplit, manifest: Manifest) -> None:
    """Raise ManifestError where a class of the manifest is on no side, or one side has none of its classes.

    Listed classes that the manifest lacks are allowed: a manifest may hold only some of a dataset's videos.
    """
    left = [name for name in manifest.classes if name not in {*split.seen, *split.unseen}]
    if left:
        where = f"{split.name}: {len(left)} classes of manifest {manifest.name!r}"
        raise ManifestError(f"{where} are on no side, first {left[0]!r}")
    for side in ("seen", "unseen"):
        if not set(getattr(split, side)) & set(manifest.classes):
            raise ManifestError(f"{split.name}: manifest {manifest.name!r} has none of the {side} classes")


def restrict_to_classes(manifest: Manifest, names: tuple[str, ...]) -> Manifest:
    """The manifest with those of its classes that are named, in the order of the names; all videos stay."""
    classes = tuple(name for name in names if name in manifest.classes)
    instances = manifest.instances[manifest.instances["label"].isin(classes)].reset_index(drop=True)
    return replace(manifest, classes=classes, instances=instances)


def seen_manifest(manifest: Manifest, split: ClassSplit) -> Manifest:
    """The training side: videos that show seen classes only. Raises ManifestError where there is none.

    Videos that also show an unseen class are left out: training would treat their unseen actions as background.
    """
    check_class_split(split, manifest)
    instances = manifest.instances
    seen, unseen = (set(instances["video_id"][instances["label"].isin(names)]) for names in (split.seen, split.unseen))
    if not seen - unseen:
        raise ManifestError(f"{split.name}: no video of manifest {manifest.name!r} shows seen classes only")
    return restrict_to_classes(restricted(manifest, (seen - unseen).__contains__), split.seen)


def unseen_manifest(manifest: Manifest, split: ClassSplit, test_split: str) -> Manifest:
    """The test side: unseen classes in the whole test split.

    Videos without an unseen class stay, so that predictions on them count as wrong, as in the per-class AP of the full
    evaluation. Raises MissingError for a split that does not exist.
    """
    check_class_split(split, manifest)
    return restrict_to_classes(manifest.select(test_split), split.unseen)


# -- class names ----------------------------------------------------------------------------------------------------


def nonsense_manifest(manifest: Manifest, seed: int = 0) -> Manifest:
    """The manifest with its classes renamed to made-up words, in the same order: a control for zero-shot scores.

    A model asked for meaningless names can localise, but cannot know which class is which; what it still scores does
    not come from reading the names.
    """
    made = nonsense_names(manifest.classes, seed)
    instances = manifest.instances.assign(label=manifest.instances["label"].map(made))
    classes = tuple(made[name] for name in manifest.classes)
    return replace(manifest, name=f"{manifest.name}_nonsense", classes=classes, instances=instances)


def nonsense_names(names: tuple[str, ...], seed: int = 0) -> dict[str, str]:
    """A made-up name for every name, with as many words of the same lengths; all different.

    Each depends on its name and the seed only, except for a rare clash.
    """

    def made_up(length: int) -> str:
        return "".join(rng.choice(_VOWELS if index % 2 else _CONSONANTS) for index in range(length))

    made: dict[str, str] = {}
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        # Words of one letter get two, as one could be an article.
        new = " ".join(made_up(max(2, len(word))) for word in name.split() or ["word"])
        while new in made.values() or new in names:
            new = f"{new} {made_up(4)}"
        made[name] = new
    return made


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The names a tower was pretrained on: a csv with a column `name`, or text with one name a line.

    Raises MissingError where the file is absent, ManifestError where it holds no name.
    """
    names = _csv_column(path, "name") if path.suffix.lower() == ".csv" else read_text(path).split("\n")
    kept = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not kept:
        raise ManifestError(f"{path}: no name in this vocabulary")
    return kept


def words_of(name: str) -> frozenset[str]:
    """The words of a name, whatever their order, case, underscores or capitals: BaseballPitch has two."""
    return frozenset(word.lower() for word in _WORDS.findall(name))


def names_in_vocabulary(names: Collection[str], vocabulary: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Which names the vocabulary contains, each with the matching entries: is an "unseen" class really unseen?

    "same": the same words in any order; "within": all words of one are among those of the other. Words must be spelled
    alike: "skipping rope" is "Rope skipping", but "kayak" is not "kayaking".
    """
    entries = [(entry, words_of(entry)) for entry in vocabulary]
    found: dict[str, dict[str, list[str]]] = {"same": {}, "within": {}}
    for name in names:
        words = words_of(name)
        same = [entry for entry, others in entries if words and words == others]
        within = [entry for entry, others in entries if words and others and (words < others or others < words)]
        if same or within:
            found["same" if same else "within"][name] = same or within
    return found
