"""Scoring files of predictions: read, screened and scored, with what was read stated beside the figures."""

import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from unloc import __version__
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.annotations.subsets import ClassSplit, nonsense_manifest, read_class_splits, read_vocabulary
from unloc.errors import InputError, MissingError, PredictionError
from unloc.evaluation.evaluator import Predictions, checked_protocol, evaluate, header
from unloc.evaluation.mismatch import require_match, require_score
from unloc.evaluation.screening import screen_predictions
from unloc.evaluation.zero_shot import PredictionsOf, ZeroShotSources, one_for_all, zero_shot
from unloc.files import file_sha256
from unloc.predictions.reading import PredictionFile, read_predictions
from unloc.predictions.records import StoredScores

VERSIONED = {"numpy": "numpy", "pandas": "pandas", "torch": "torch", "open_clip": "open_clip_torch", "zarr": "zarr"}


@dataclass(frozen=True, kw_only=True)
class PredictionFiles:
    """Reads files of predictions for one split and keeps what metrics.json states of each."""

    task: str
    manifest: Manifest
    split: str
    keep: Callable[[str], bool] = lambda _: True
    """Which videos are scored: predictions of the others are left out, as officially those of blocked videos."""
    problems: Problems = field(default_factory=Problems)
    held: dict[Path, PredictionFile] = field(default_factory=dict)
    """What each file said of itself, without its predictions."""
    score_files: set[Path] = field(default_factory=set)
    """The .npz of class scores that the predictions name."""

    def read(self, path: Path) -> tuple[Predictions, Predictions]:
        """The predictions of a file, and those of them that can be scored.

        Raises PredictionError where none belongs to the split, and as `read_predictions`.
        """
        held = read_predictions(path, self.task, split=self.split, problems=self.problems)
        predictions = held.predictions
        if isinstance(predictions, pd.DataFrame):
            predictions = predictions[predictions["video_id"].map(self.keep).astype(bool)].reset_index(drop=True)
        else:
            predictions = [item for item in predictions if self.keep(item.video_id)]
            stored = (getattr(item, "scores", None) for item in predictions)
            self.score_files.update(Path(one.file.fid.name) for one in stored if isinstance(one, StoredScores))
        screened = screen_predictions(self.task, predictions, self.manifest.select(self.split), self.problems)
        require_match(path, self.task, predictions, screened, self.manifest, self.split)
        self.held[path] = replace(held, predictions=[])
        return predictions, screened

    def external_labels(self) -> bool | None:
        """Whether any of the files says that labels of another model were used; None where none says anything."""
        said = [file.external_labels for file in self.held.values() if file.external_labels is not None]
        return any(said) if said else None

    def stated(self, by_command: bool) -> dict:
        """Format and hash of the files, what is wrong with them, and who states external labels."""
        external, hashes = self.external_labels(), {str(path): file_sha256(path) for path in self.held}
        nobody = "nowhere" if external is None else "by the file"
        return {
            "predictions_format": ", ".join(dict.fromkeys(file.format for file in self.held.values())),
            "predictions_sha256": hashes if len(hashes) > 1 else next(iter(hashes.values()), None),
            "scores_sha256": {path.name: file_sha256(path) for path in sorted(self.score_files)},
            "external_labels": by_command or bool(external),
            "external_labels_stated": "by the command" if by_command and not external else nobody,
            "bad_predictions": {
                kind: [number, self.problems.first[kind]] for kind, number in self.problems.counts.items()
            },
        }


def provenance(manifest: Path, lists: Iterable[Path] = ()) -> dict:
    """What a figure depends on beside predictions and protocol: hashes of annotations and lists of videos, versions."""
    versions = {name: version(package) for name, package in VERSIONED.items() if name in sys.modules}
    return {
        "annotations_sha256": file_sha256(manifest),
        "video_lists": {str(path): file_sha256(path) for path in lists},
        "versions": {"unloc": __version__, "python": platform.python_version(), **versions},
    }


def score_file(path: Path, screened: Predictions, files: PredictionFiles, scoring: dict) -> dict:
    """metrics.json of the predictions of one file. Raises PredictionError where nothing annotated was found."""
    report = evaluate(files.task, screened, files.manifest, **scoring)
    require_score(path, report["metrics"], files.problems)
    return report | files.stated(scoring["external_labels"])


# -- zero-shot ------------------------------------------------------------------------------------------------------


def score_zero_shot(
    path: Path, files: PredictionFiles, scoring: dict, *, lists: Path, vocabularies: list[Path], control: Path | None
) -> tuple[dict, Predictions | None]:
    """metrics.json of all class splits below a folder of lists; beside it that of all classes where one file serves
    every split. Raises as `PredictionFiles.read`, InputError where a folder holds several shares of seen classes.
    """
    selected, train_split = files.manifest.select(files.split), scoring["train_split"]
    controls = replace(files, manifest=nonsense_manifest(files.manifest), held={})
    detections = None if path.is_dir() else files.read(path)[1]
    sources = ZeroShotSources(
        predictions=files_of(path, files) if detections is None else one_for_all(detections),
        control=files_of(control, controls) if control else None,
        train=files.manifest.select(train_split) if train_split else None,
        vocabularies={vocabulary.stem: read_vocabulary(vocabulary) for vocabulary in vocabularies},
    )
    protocol = checked_protocol("tal", selected, scoring["protocol"])
    found = zero_shot(sources, selected, read_class_splits(lists), protocol)
    if detections is not None:
        report = evaluate("tal", detections, files.manifest, **scoring)
    elif len(found) > 1:
        raise InputError(f"--predictions {path}: a folder holds one share of seen classes; got {', '.join(found)}")
    else:
        share = next(iter(found.values()))
        report = header("tal", selected, files.split, protocol)
        report |= {"metrics": share["mean"], "floors": share.get("floors", {})}
    require_score(path, report["metrics"], files.problems)
    report |= files.stated(scoring["external_labels"]) | {"zero_shot": found}
    if control:
        report["control_sha256"] = controls.stated(by_command=False)["predictions_sha256"]
    return report, detections


def files_of(path: Path, files: PredictionFiles) -> PredictionsOf:
    """Detections of one file for every class split, or of each split's own file below a folder."""
    last: dict[Path, pd.DataFrame] = {}

    def predictions_of(split: ClassSplit) -> pd.DataFrame:
        file = split_file(path, split.name)
        if file not in last:
            last.clear()  # of a folder's many files only the last is kept
            last[file] = files.read(file)[1]
        return last[file]

    return predictions_of


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


def refuse_bad(path: Path, problems: Problems) -> None:
    """Raise PredictionError with every problem told (--strict)."""
    if problems.counts:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems.lines())}")
