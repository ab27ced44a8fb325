"""Zero-shot temporal action localization: the unseen classes of each class split, then the mean over the splits.

Ground truth and predictions are restricted to the unseen classes; AP per class and the mean over classes as in
`detection`. Ten random splits each of 50 % and 75 % seen classes are usual (UnLoc §4.3, EffPrompt, STALE).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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

    `manifest` is the selected test split; std is that of the population of splits. The report also holds the leak
    check; the floors, fitted on the seen classes of `train`; the mean of the nonsense control, `control_of` being
    detections for the `nonsense_manifest`; and which unseen names the `vocabularies` of pretraining have.
    Raises InputError for an unknown protocol or a leak, ManifestError if a split does not fit the manifest.
    """
    groups: dict[str, list[ClassSplit]] = {}
    for split in splits:
        check_class_split(split, manifest)
        seen = {words_of(name): name for name in split.seen}
        leaked = [(name, seen[words_of(name)]) for name in split.unseen if words_of(name) in seen]
        if leaked:
            first = "{!r} is {!r}".format(*leaked[0])
            raise InputError(f"{split.name}: {len(leaked)} unseen classes are seen ones, first {first}")
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
