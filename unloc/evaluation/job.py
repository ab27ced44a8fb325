"""Evaluations from files to files, as `unloc eval` runs them; those that run a model are in `unloc.inference`."""

import platform
import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from unloc import __version__
from unloc.annotations.durations import cached_durations
from unloc.annotations.schema import Manifest, load_manifest
from unloc.annotations.subsets import (
    ClassSplit,
    listed_filter,
    nonsense_manifest,
    read_class_splits,
    read_vocabulary,
    restricted,
)
from unloc.cache.opening import open_cache
from unloc.errors import InputError, MissingError, PredictionError
from unloc.evaluation.analysis import PLOTS, analyse
from unloc.evaluation.evaluator import Predictions, evaluate, has_annotations, header, require_annotations
from unloc.evaluation.files import Outputs, PredictionFiles, write_report
from unloc.evaluation.protocols import protocol_for
from unloc.evaluation.zero_shot import PredictionsOf, zero_shot
from unloc.files import file_sha256
from unloc.predictions.writing import export_predictions, missing_submissions
from unloc.tasks import task_named

TRAIN_SPLITS = ("train", "training", "validation")  # THUMOS14 has no other than `validation`
VERSIONED = {"numpy": "numpy", "pandas": "pandas", "torch": "torch", "open_clip": "open_clip_torch", "zarr": "zarr"}


@dataclass(kw_only=True)
class Evaluation:
    """One evaluation of a split: its annotations, the options of scoring, and the files it writes.

    Raises as `load_manifest`; InputError if an output would replace an input or a file that no evaluation wrote.
    """

    manifest_path: Path
    split: str
    task: str | None = None
    cache: Path | None = None
    """Cache of the videos: durations that the manifest does not state, and tokens for a model."""
    train_split: str | None = None
    """Split that blind floors are fitted on; by default the one that models of the dataset are trained on."""
    protocol: str | None = None
    interval_seed: int | None = None
    external_labels: bool = False
    analyse: bool = False
    without: list[Path] = field(default_factory=list)
    only: list[Path] = field(default_factory=list)
    out: Path | None = None
    """Folder, or file of the report."""
    export: Path | None = None
    """File for the predictions."""
    inputs: list[Path] = field(default_factory=list)
    """Further files that are read."""
    messages: list[str] = field(default_factory=list, init=False)
    """What happened, for the user."""
    warnings: list[str] = field(default_factory=list, init=False)
    manifest: Manifest = field(init=False)
    """Without the videos left out of the split; `selected` is that split, `report_path` the file of the report."""

    def __post_init__(self) -> None:
        lists, self.report_path = [*self.without, *self.only], None
        self.outputs = Outputs([self.manifest_path, *self.inputs, *lists])
        if self.out is not None:
            self.report_path = self.out if self.out.suffix == ".json" else self.out / "metrics.json"
            self.outputs.add(self.report_path, "--out")
            for name in PLOTS if self.analyse else ():
                self.outputs.add(self.report_path.parent / "analysis" / name, "--analyse")
        manifest = load_manifest(self.manifest_path)
        if self.cache is not None:
            manifest = cached_durations(manifest, open_cache(self.cache))
        manifest.select(self.train_split)
        before = len(manifest.select(self.split).videos)
        self.keep = listed_filter(self.without, self.only)
        if lists:
            manifest = restricted(manifest, self.keep, self.split)
            if self.split not in manifest.splits:
                raise InputError(
                    f"--without, --only: no video of split {self.split!r} is left of {before}; are these its ids?"
                )
            left_out = before - len(manifest.select(self.split).videos)
            self.messages.append(f"{left_out} of {before} videos are left out of annotations and predictions")
        self.manifest, self.selected = manifest, manifest.select(self.split)
        names = (name for name in TRAIN_SPLITS if name in manifest.splits and name != self.split)
        self.floor_split = self.train_split or next(names, None)

    def prepare(self, task: str, *, with_report: bool) -> tuple[bool, list[Path]]:
        """Whether the split can be scored, and the files for predictions: next to metrics.json, and that of --export.

        Raises InputError if it can be neither scored nor exported, and as `Outputs.add`.
        """
        if self.export is None:
            require_annotations(task, self.selected, self.split)
        paths = []
        if self.report_path is not None and with_report:
            name = "predictions.json" if task == "tal" else "predictions.jsonl"
            paths.append(self.outputs.add(self.report_path.with_name(name), "--out"))
        if self.export is not None:
            paths.append(self.outputs.add(self.export, "--export"))
        for path in paths if task == "as" else ():
            self.outputs.add(path.with_name(f"{path.stem}_scores.npz"), "class scores next to")
        return has_annotations(task, self.selected), paths

    def write_predictions(self, paths: list[Path], task: str, predictions: Predictions, split: str) -> None:
        """Write the predictions of a split."""
        with self.outputs.writing():
            for path in paths:
                export_predictions(path, task, predictions, split, external_labels=self.external_labels)
        for path in paths:
            self.messages.append(f"  wrote {path}")
            for name in missing_submissions(path) if path.suffix.lower() == ".zip" else ():
                message = f"    lacks {name}, which the server takes too: export that split to the same file"
                self.messages.append(message)

    def report(self, task: str, predictions: Predictions | None) -> dict:
        """metrics.json of predictions, as `evaluate`."""
        options = {"protocol": self.protocol, "interval_seed": self.interval_seed}
        report = evaluate(task, predictions, self.manifest, self.split, train_split=self.floor_split, **options)
        return report | {"external_labels": self.external_labels}

    def finish(self, task: str, report: dict | None, predictions: Predictions | None) -> dict | None:
        """Complete the report with all that its figures depend on besides predictions, and write it.

        None: the split has no annotations.
        """
        if report is None:
            self.messages.append(f"split {self.split!r} has no annotations for {task}: nothing is scored")
            return None
        if self.analyse and predictions is None:
            raise InputError("unloc eval: --analyse needs one file of predictions, RUN or --baseline")
        versions = {name: version(package) for name, package in VERSIONED.items() if name in sys.modules}
        report |= {
            "annotations_sha256": file_sha256(self.manifest_path),
            "video_lists": {str(path): file_sha256(path) for path in [*self.without, *self.only]},
            "versions": {"unloc": __version__, "python": platform.python_version(), **versions},
        }
        if self.analyse:
            report["analysis"] = analyse(task, predictions, self.selected)
        if self.report_path is not None:
            with self.outputs.writing():
                write_report(report, self.report_path)
        return report


def evaluate_floors(evaluation: Evaluation) -> dict:
    """The report of the blind floors alone."""
    task = task_named(evaluation.task).name
    require_annotations(task, evaluation.selected, evaluation.split)
    return evaluation.finish(task, evaluation.report(task, None), None)


def evaluate_file(
    evaluation: Evaluation,
    path: Path,
    strict: bool = False,
    class_splits: Path | None = None,
    vocabularies: list[Path] | None = None,
    control: Path | None = None,
) -> dict | None:
    """The report of a file of predictions; None if the annotations are hidden and the predictions are only exported.

    With a folder of `class_splits` the report is zero-shot: the unseen classes of each, besides all classes for one
    file; for a folder of predictions of one share of seen classes the mean. `strict`: bad predictions raise
    PredictionError. Raises as `PredictionFiles.read`.
    """
    task, manifest, selected = task_named(evaluation.task).name, evaluation.manifest, evaluation.selected
    files = PredictionFiles(task=task, manifest=manifest, split=evaluation.split, keep=evaluation.keep)
    is_scored, paths = evaluation.prepare(task, with_report=False)
    given = screened = report = None
    if class_splits is None or not path.is_dir():
        given, screened = files.read(path)
        report = evaluation.report(task, screened) if is_scored else None
    if class_splits is not None and is_scored:
        rules = protocol_for("tal", evaluation.protocol, selected)
        controls = replace(files, manifest=nonsense_manifest(manifest), files={})
        shares = zero_shot(
            _predictions_of(path, files) if screened is None else lambda _: screened,
            selected,
            read_class_splits(class_splits),
            rules.name,
            control_of=_predictions_of(control, controls) if control else None,
            train=manifest.select(evaluation.floor_split) if evaluation.floor_split else None,
            vocabularies={vocabulary.stem: read_vocabulary(vocabulary) for vocabulary in vocabularies or []},
        )
        if screened is None:
            if len(shares) > 1:
                names = ", ".join(shares)
                raise InputError(f"--predictions {path}: a folder holds one share of seen classes; got {names}")
            (share,) = shares.values()
            report = header("tal", selected, evaluation.split, rules)
            report |= {"metrics": share["mean"], "floors": share.get("floors", {})}
        report["zero_shot"] = shares
        if control:
            report["control_sha256"] = controls.description(by_command=False)["predictions_sha256"]
    stated, problems = files.description(evaluation.external_labels), list(files.problems.lines())
    if report is not None:
        if not any(value > 0 for name, value in report["metrics"].items() if name != "mIoU"):
            none = "no prediction reaches an annotated segment, every metric is 0.00"
            raise PredictionError("; ".join([f"{path}: nothing matches: {none}", *problems]))
        report |= stated
    if strict and problems:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems)}")
    evaluation.messages += [
        f"{path}: {stated['predictions_format']}",
        *(f"  bad predictions: {line}" for line in problems),
    ]
    if paths:
        evaluation.external_labels = stated["external_labels"]
        evaluation.write_predictions(paths, task, given, evaluation.split)
    return evaluation.finish(task, report, screened)


def _predictions_of(path: Path, files: PredictionFiles) -> PredictionsOf:
    """Detections of one file for every class split, or of each split's own file below a folder.

    NAME.json or NAME/predictions.json, NAME being that of the split or its last part. Raises MissingError if a split
    has no file.
    """
    read = lru_cache(maxsize=1)(lambda file: files.read(file)[1])  # of the many files of a folder only the last

    def predictions_of(split: ClassSplit) -> pd.DataFrame:
        names = (split.name, split.name.rsplit("/", 1)[-1])
        candidates = [path / name / "predictions.json" for name in names] + [path / f"{name}.json" for name in names]
        file = next(filter(Path.is_file, candidates), None) if path.is_dir() else path
        if file is None:
            expected = f"{split.name}/predictions.json"
            raise MissingError(f"{path}: no predictions for class split {split.name!r}; expected {expected}")
        return read(file)

    return predictions_of
