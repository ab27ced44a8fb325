"""`unloc eval --zero-shot`: one file of predictions for all class splits, or a folder with one file a split."""

from pathlib import Path
from typing import TYPE_CHECKING

from unloc.errors import InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd

    from unloc.data.class_splits import ClassSplit
    from unloc.data.predictions import Problems
    from unloc.data.schema import Manifest
    from unloc.evaluation.zero_shot import PredictionsOf


def zero_shot_report(
    predictions: "Path | pd.DataFrame",
    manifest: "Manifest",
    scoring: dict,
    *,
    lists: Path,
    vocabularies: list[Path],
    control: Path | None,
    problems: "Problems",
) -> dict[str, dict]:
    """The report of every share of seen classes below the folder of lists; problems of the files are told."""
    from unloc.data.class_splits import read_class_splits
    from unloc.data.nonsense import nonsense_manifest
    from unloc.data.vocabulary import read_vocabulary
    from unloc.evaluation.evaluator import checked_protocol
    from unloc.evaluation.zero_shot import ZeroShotSources, one_for_all, zero_shot

    selected, train_split = manifest.select(scoring["split"]), scoring["train_split"]
    sources = ZeroShotSources(
        predictions=files_of(predictions, selected, problems)
        if isinstance(predictions, Path)
        else one_for_all(predictions),
        control=files_of(control, nonsense_manifest(selected), problems) if control else None,
        train=manifest.select(train_split) if train_split else None,
        vocabularies={path.stem: read_vocabulary(path) for path in vocabularies},
    )
    protocol = checked_protocol("tal", selected, scoring["protocol"])
    return zero_shot(sources, selected, read_class_splits(lists), protocol)


def files_of(path: Path, manifest: "Manifest", problems: "Problems") -> "PredictionsOf":
    """Screened detections of a file, or of each class split's own file below a folder."""
    held: dict[Path, pd.DataFrame] = {}

    def predictions_of(split: "ClassSplit") -> "pd.DataFrame":
        file = split_file(path, split.name)
        if file not in held:
            held.clear()  # of a folder's many files only the last is kept
            held[file] = screened_detections(file, manifest, problems)
        return held[file]

    return predictions_of


def screened_detections(path: Path, manifest: "Manifest", problems: "Problems") -> "pd.DataFrame":
    """Detections that can be scored; what is wrong with the others is told."""
    from unloc.data.prediction_reading import read_predictions
    from unloc.evaluation.screening import screen_detections

    return screen_detections(read_predictions(path, "tal", problems=problems).predictions, manifest, problems)


def split_file(path: Path, name: str) -> Path:
    """The file itself, or the one of a class split in a folder: NAME.json, NAME/predictions.json, or by its last part.

    Raises MissingError where neither is there.
    """
    if not path.is_dir():
        return path
    last = name.rsplit("/", 1)[-1]
    candidates = [path / part / "predictions.json" for part in (name, last)]
    candidates += [path / f"{part}.json" for part in (name, last)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingError(f"{path}: no predictions for class split {name!r}; expected {name}/predictions.json")


def single_share(found: dict[str, dict], path: Path) -> dict:
    """The report of the only share of seen classes. Raises InputError where there are several."""
    if len(found) != 1:
        raise InputError(f"--predictions {path}: a folder holds one share of seen classes; got {', '.join(found)}")
    return next(iter(found.values()))
