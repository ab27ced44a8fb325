"""Zero-shot temporal action localization: the unseen classes of each class split, then the mean over the splits.

Ground truth and predictions are restricted to the unseen classes; AP per class and the mean over classes as in
`detection`. Class lists are those of EffPrompt and STALE: a folder holds `train/split_0.list` (seen) and
`test/split_0.list` (unseen), one class name a line; ten random splits each of 50 % and 75 % seen classes are usual
(UnLoc §4.3, Table 7).
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from unloc.annotations.reading import read_names
from unloc.annotations.schema import Manifest, restricted
from unloc.errors import ManifestError, MissingError
from unloc.evaluation.detection import detection
from unloc.evaluation.floors import detection_floors

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """One division of a dataset's classes. Raises ManifestError where a class, by its words, is on both sides."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        seen, unseen = ({words_of(name) or name: name for name in side} for side in (self.seen, self.unseen))
        if leaked := [words for words in unseen if words in seen]:
            first = f"{unseen[leaked[0]]!r} is {seen[leaked[0]]!r}"
            raise ManifestError(f"{self.name}: {len(leaked)} unseen classes are seen ones, first {first}")


PredictionsOf = Callable[[ClassSplit], pd.DataFrame]
"""Detections for a class split: of the model trained on its seen classes, or of one model for all splits."""


def zero_shot(
    predictions_of: PredictionsOf,
    manifest: Manifest,
    splits: Sequence[ClassSplit],
    protocol: str = "activitynet",
    *,
    control_of: PredictionsOf | None = None,
    train: Manifest | None = None,
    vocabularies: Mapping[str, Collection[str]] | None = None,
) -> dict[str, dict]:
    """For every share of seen classes (`train_50_test_50`, …): mean, std and each split's metrics in percent.

    `manifest` is the selected test split; std is that of the population of splits. The report also holds the floors,
    fitted on the seen classes of `train`; the mean of the nonsense control, `control_of` being detections for the
    `nonsense_manifest`; and which unseen names the `vocabularies` of pretraining have. Raises InputError for an unknown
    protocol, ManifestError if a split does not fit the manifest.
    """
    groups: dict[str, list[ClassSplit]] = {}
    for split in splits:
        check_class_split(split, manifest)
        folder = str(PurePosixPath(split.name).parent)
        share = f"{len(split.seen)}_seen_{len(split.unseen)}_unseen" if folder == "." else folder
        groups.setdefault(share, []).append(split)
    reports = {}
    for share, group in groups.items():
        parts = {split: restrict_to_classes(manifest, split.unseen) for split in group}
        scores = {split.name: detection(predictions_of(split), part, protocol) for split, part in parts.items()}
        report = reports[share] = {
            "num_splits": len(group),
            **mean_and_std(list(scores.values())),
            "splits": scores,
            "unseen_classes_present": {split.name: part.instances["label"].nunique() for split, part in parts.items()},
            "leak_check": "no class, by its words, is both seen and unseen in any split",
        }
        if train is not None:
            floors = []
            for split, part in parts.items():
                found = detection_floors(part, restrict_to_classes(train, split.seen))
                floors.append({name: detection(constant, part, protocol) for name, constant in found.items()})
            report["floors"] = {name: mean_and_std([row[name] for row in floors])["mean"] for name in floors[0]}
        if control_of:
            control = [detection(control_of(split), nonsense_manifest(part), protocol) for split, part in parts.items()]
            report["nonsense_control"] = mean_and_std(control)
        if vocabularies:
            names = tuple(dict.fromkeys(name for split in group for name in split.unseen))
            overlaps = report["unseen_names_in_vocabulary"] = {}
            for title, vocabulary in vocabularies.items():
                found = names_in_vocabulary(names, vocabulary)
                shares = [100.0 * len(found["same"].keys() & set(split.unseen)) / len(split.unseen) for split in group]
                means = {"mean": float(np.mean(shares)), "most": float(np.max(shares))}
                overlaps[title] = {**found, "percent_same_per_split": means}
    return reports


def mean_and_std(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of every metric over the splits; NaN if one of them has none."""
    columns = {name: np.array([score[name] for score in scores]) for name in scores[0]}
    mean, std = ({name: float(of(column)) for name, column in columns.items()} for of in (np.mean, np.std))
    return {"mean": mean, "std": std}


def read_class_splits(folder: Path) -> list[ClassSplit]:
    """All splits below a folder, ordered by their numbers and named by their path, such as `train_50_test_50/split_3`.
    Raises MissingError where there is none or a side is missing, ManifestError for an empty list.
    """
    found = {}
    for path in folder.rglob("train/*.list"):
        name = (path.parent.parent.relative_to(folder) / path.stem).as_posix()
        unseen = read_names(path.parent.parent / "test" / path.name)
        order = (str(path.parent), int("0" + "".join(filter(str.isdigit, path.stem))), path.name)
        found[order] = ClassSplit(name=name, seen=read_names(path), unseen=unseen)
    if not found:
        reason = f"no train/*.list below {folder}" if folder.is_dir() else f"folder {folder} does not exist"
        raise MissingError(f"class lists: {reason}")
    return [found[order] for order in sorted(found)]


def check_class_split(split: ClassSplit, manifest: Manifest) -> None:
    """Raise ManifestError where a class of the manifest is on no side, or one side has none of its classes. Listed
    classes that the manifest lacks are allowed: a manifest may hold only some of a dataset's videos.
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

    Unseen actions in training videos would count as background; test videos without an unseen class stay, as in the AP
    of all classes. Raises ManifestError where the split does not fit or no training video is left, MissingError for no
    split.
    """
    check_class_split(split, manifest)
    instances = manifest.instances
    seen, unseen = (set(instances["video_id"][instances["label"].isin(names)]) for names in (split.seen, split.unseen))
    if not seen - unseen:
        raise ManifestError(f"{split.name}: no video of manifest {manifest.name!r} shows seen classes only")
    train = restricted(manifest, (seen - unseen).__contains__)
    return restrict_to_classes(train, split.seen), restrict_to_classes(manifest.select(test_split), split.unseen)


def nonsense_manifest(manifest: Manifest) -> Manifest:
    """The manifest with made-up class names in the same order, a control: a model asked for these can localise, but
    cannot know which class is which. Each has as many words of the same lengths, and depends on the name alone but for
    a clash.
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
    """Which names the vocabulary contains, each with the matching entries: is an "unseen" class really unseen? "same":
    the same words in any order; "within": all words of one are among those of the other. Words must be spelled alike:
    "skipping rope" is "Rope skipping", but "kayak" is not "kayaking".
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
