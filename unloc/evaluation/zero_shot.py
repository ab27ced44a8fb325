"""Zero-shot temporal action localization: the unseen classes of each class split, then the mean over the splits.

Ground truth and predictions are cut to the unseen classes; AP per class and the mean over classes as in `detection`.
Customary are ten random splits each of 50 % and 75 % seen classes (UnLoc §4.3, EffPrompt, STALE).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.annotations.subsets import (
    ClassSplit,
    check_class_split,
    names_in_vocabulary,
    nonsense_manifest,
    restrict_to_classes,
    words_of,
)
from unloc.errors import InputError
from unloc.evaluation.detection import detection
from unloc.evaluation.floors import detection_floors

PredictionsOf = Callable[[ClassSplit], pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class ZeroShotSources:
    """What a zero-shot figure is made from, beside the annotations."""

    predictions: PredictionsOf
    """Detections for a class split: of the model trained on its seen classes, or of one model for all splits."""
    control: PredictionsOf | None = None
    """Detections of the same model for the manifest with nonsense names (`nonsense_manifest`), labelled by those."""
    train: Manifest | None = None
    """The training split, on whose seen classes the blind floors are fitted; None: no floors."""
    vocabularies: Mapping[str, Collection[str]] | None = None
    """Names the tower was pretrained on, by what they are called."""


def one_for_all(detections: pd.DataFrame) -> PredictionsOf:
    """The same detections for every split: those of a model that no split trains."""
    return lambda _: detections


def zero_shot(
    sources: ZeroShotSources, manifest: Manifest, splits: Sequence[ClassSplit], protocol: str = "activitynet"
) -> dict[str, dict]:
    """For every share of seen classes (`train_50_test_50`, …): mean, std and each split's metrics in percent.

    `manifest` is the selected test split. The standard deviation is that of the population of splits. Beside them stand
    the leak check, floors, the mean of the nonsense control, and which unseen names the vocabularies hold.
    Raises InputError for an unknown protocol or a leak, ManifestError where a split does not fit the manifest.
    """
    shares: dict[str, list[ClassSplit]] = {}
    for split in splits:
        check_class_split(split, manifest)
        refuse_same_words(split)
        shares.setdefault(share_name(split), []).append(split)
    return {share: share_report(sources, manifest, group, protocol) for share, group in shares.items()}


def share_name(split: ClassSplit) -> str:
    """The folder of the lists, or how many classes stand on each side where the lists lie in none."""
    folder = str(PurePosixPath(split.name).parent)
    return f"{len(split.seen)}_seen_{len(split.unseen)}_unseen" if folder == "." else folder


def share_report(
    sources: ZeroShotSources, manifest: Manifest, splits: Sequence[ClassSplit], protocol: str
) -> dict[str, object]:
    """The report of one share of seen classes."""
    unseen = {split: restrict_to_classes(manifest, split.unseen) for split in splits}
    scores = {split.name: detection(sources.predictions(split), part, protocol) for split, part in unseen.items()}
    report: dict[str, object] = {
        "num_splits": len(splits),
        **mean_and_std(list(scores.values())),
        "splits": scores,
        "unseen_classes_present": {
            split.name: int(part.instances["label"].nunique()) for split, part in unseen.items()
        },
        "leak_check": "no class, by its words, is both seen and unseen in any split",
    }
    if sources.train is not None:
        report["floors"] = mean_floors(unseen, sources.train, protocol)
    if sources.control:
        control = [
            detection(sources.control(split), nonsense_manifest(part), protocol) for split, part in unseen.items()
        ]
        report["nonsense_control"] = mean_and_std(control)
    if sources.vocabularies:
        names = tuple(dict.fromkeys(name for split in splits for name in split.unseen))
        report["unseen_names_in_vocabulary"] = {
            title: overlap_report(names, vocabulary, splits) for title, vocabulary in sources.vocabularies.items()
        }
    return report


def mean_floors(unseen: Mapping[ClassSplit, Manifest], train: Manifest, protocol: str) -> dict[str, dict[str, float]]:
    """Mean metrics of every blind floor over the splits; the constants know the segments of seen classes only."""
    scores: dict[str, list[dict[str, float]]] = {}
    for split, part in unseen.items():
        for name, constant in detection_floors(part, restrict_to_classes(train, split.seen)).items():
            scores.setdefault(name, []).append(detection(constant, part, protocol))
    return {name: mean_and_std(rows)["mean"] for name, rows in scores.items()}


def refuse_same_words(split: ClassSplit) -> None:
    """Raise InputError where an unseen class has the words of a seen one, however it is spelled: a leak."""
    seen = {words_of(name): name for name in split.seen}
    leaked = [(name, seen[words_of(name)]) for name in split.unseen if words_of(name) in seen]
    if leaked:
        unseen, twin = leaked[0]
        raise InputError(f"{split.name}: {len(leaked)} unseen classes are seen ones, first {unseen!r} is {twin!r}")


def mean_and_std(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of every metric over the splits; NaN where one of them has none."""
    names = list(scores[0]) if scores else []
    columns = {name: np.array([score[name] for score in scores]) for name in names}
    return {
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "std": {name: float(column.std()) for name, column in columns.items()},
    }


def overlap_report(
    names: Sequence[str], vocabulary: Collection[str], splits: Sequence[ClassSplit]
) -> dict[str, object]:
    """Which of the unseen names the vocabulary holds, and in what share of each split's unseen classes."""
    found = names_in_vocabulary(names, vocabulary)
    shares = [100.0 * len(found["same"].keys() & set(split.unseen)) / len(split.unseen) for split in splits]
    return {**found, "percent_same_per_split": {"mean": float(np.mean(shares)), "most": float(np.max(shares))}}
