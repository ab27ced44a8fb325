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
from unloc.annotations.reading import read_json, read_lines, read_text
from unloc.annotations.schema import Manifest
from unloc.errors import InputError, ManifestError, MissingError

_ID_COLUMNS = ("video_id", "video", "video_name", "video-id", "vid", "id", "name")
_PREFIXES = re.compile(r"^(v_)+")  # ActivityNet's; some YouTube ids begin with `v_` themselves
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


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
    else:
        ids = [line if path.suffix.lower() == ".csv" else line.split()[0] for line in read_names(path, *_ID_COLUMNS)]
    return frozenset(_PREFIXES.sub("", video_id.strip()) for video_id in ids)


def read_names(path: Path, *columns: str) -> tuple[str, ...]:
    """The first of these columns that a csv has, or the lines of another file; without empty ones, each name once.

    Raises MissingError where the file is absent, ManifestError where it holds no name.
    """
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(read_text(path)))
        column = next((name for name in columns if name in (reader.fieldnames or ())), None)
        if column is None:
            raise ManifestError(f"{path}:1: no column `{'` or `'.join(columns)}`; it has {reader.fieldnames}")
        names = [row[column] or "" for row in reader]
    else:
        names = read_text(path).split("\n")
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ManifestError(f"{path}: no {'video id' if 'video_id' in columns else 'name'} in this list")
    return names


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


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """One division of a dataset's classes."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def read_class_list(path: Path) -> tuple[str, ...]:
    """The class names of a list in its order. Raises ManifestError where one is repeated or there is none."""
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        first = names.setdefault(line.strip(), number)
        if first != number:
            raise ManifestError(f"{path}:{number}: {line.strip()!r} is in line {first} too")
    if not names:
        raise ManifestError(f"{path}: no class name in this list")
    return tuple(names)


def read_class_splits(folder: Path) -> list[ClassSplit]:
    """All splits below a folder, ordered by their numbers and named by their path, such as `train_50_test_50/split_3`.

    Raises MissingError where there is none or a side is missing, ManifestError where both sides share a class (a leak).
    """
    found = {}
    for path in folder.rglob("train/*.list"):
        other = path.parent.parent / "test" / path.name
        if not other.is_file():
            raise MissingError(f"{path}: its unseen side {other} does not exist")
        name = (path.parent.parent.relative_to(folder) / path.stem).as_posix()
        seen, unseen = read_class_list(path), read_class_list(other)
        if leaked := sorted(set(seen) & set(unseen)):
            raise ManifestError(f"{name}: {len(leaked)} classes are both seen and unseen, first {leaked[0]!r}")
        order = (str(path.parent), int("0" + "".join(filter(str.isdigit, path.stem))), path.name)
        found[order] = ClassSplit(name=name, seen=seen, unseen=unseen)
    if not found:
        reason = f"no train/*.list below {folder}" if folder.is_dir() else f"folder {folder} does not exist"
        raise MissingError(f"class lists: {reason}")
    return [found[order] for order in sorted(found)]


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


def zero_shot_sides(manifest: Manifest, split: ClassSplit, test_split: str) -> tuple[Manifest, Manifest]:
    """Training on videos that show seen classes only, and testing unseen classes in the whole test split.

    Videos that also show an unseen class are not trained on: their unseen actions would count as background. Videos
    of the test split without an unseen class stay: predictions on them count as wrong, as in the AP of all classes.
    Raises ManifestError where the split does not fit or leaves no training video, MissingError for an unknown split.
    """
    check_class_split(split, manifest)
    instances = manifest.instances
    seen, unseen = (set(instances["video_id"][instances["label"].isin(names)]) for names in (split.seen, split.unseen))
    if not seen - unseen:
        raise ManifestError(f"{split.name}: no video of manifest {manifest.name!r} shows seen classes only")
    train = restricted(manifest, (seen - unseen).__contains__)
    return restrict_to_classes(train, split.seen), restrict_to_classes(manifest.select(test_split), split.unseen)


def nonsense_manifest(manifest: Manifest) -> Manifest:
    """The manifest with its classes renamed to made-up words, in the same order: a control for zero-shot scores.

    A model asked for meaningless names can localise, but cannot know which class is which; what it still scores does
    not come from reading the names. A made-up name has as many words of the same lengths; it depends on the name alone,
    except for a rare clash.
    """
    made: dict[str, str] = {}
    letters = tuple("bdfgklmnprstvz"), tuple("aeiou")
    for name in manifest.classes:
        rng = np.random.default_rng([0, *name.encode()])
        lengths, new = [len(word) for word in name.split() or ["word"]], ""
        while not new or new in made.values() or new in manifest.classes:
            # Words of one letter get two, as one could be an article.
            words = ("".join(rng.choice(letters[index % 2]) for index in range(max(2, length))) for length in lengths)
            new, lengths = f"{new} {' '.join(words)}".strip(), [4]
        made[name] = new
    instances = manifest.instances.assign(label=manifest.instances["label"].map(made))
    classes = tuple(made[name] for name in manifest.classes)
    return replace(manifest, name=f"{manifest.name}_nonsense", classes=classes, instances=instances)


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
