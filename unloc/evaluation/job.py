"""Evaluations from files to files, as `unloc eval` runs them; those that run a model are in `unloc.inference`."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

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
from unloc.evaluation.analysis import analyse
from unloc.evaluation.evaluator import (
    Predictions,
    default_train_split,
    evaluate,
    has_annotations,
    header,
    require_annotations,
)
from unloc.evaluation.files import Outputs, PredictionFiles, plot_paths, provenance, report_path, write_report
from unloc.evaluation.protocols import protocol_for
from unloc.evaluation.screening import require_score
from unloc.evaluation.zero_shot import PredictionsOf, zero_shot
from unloc.predictions.writing import export_predictions, missing_submissions
from unloc.tasks import task_named


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
    """Without the videos left out of the split."""

    def __post_init__(self) -> None:
        lists = [*self.without, *self.only]
        self.outputs = Outputs([self.manifest_path, *self.inputs, *lists])
        if self.out is not None:
            self.outputs.add(report_path(self.out), "--out")
            for plot in plot_paths(self.out) if self.analyse else ():
                self.outputs.add(plot, "--analyse")
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
        self.manifest = manifest

    @cached_property
    def selected(self) -> Manifest:
        """The annotations of the split."""
        return self.manifest.select(self.split)

    @property
    def required_task(self) -> str:
        """The task. Raises InputError if it is unknown or not given."""
        if self.task is None:
            raise InputError("unloc eval: --task is needed without RUN: mr, tal, as or hd")
        return task_named(self.task).name

    def has_annotations(self, task: str) -> bool:
        """Whether the split can be scored. Raises InputError if not and nothing is exported either."""
        if self.export is None:
            require_annotations(task, self.selected, self.split)
        return has_annotations(task, self.selected)

    def prediction_paths(self, task: str, *, with_report: bool) -> list[Path]:
        """The files for predictions: next to metrics.json, and the one that --export names. Raises as `Outputs.add`."""
        paths = []
        if self.out is not None and with_report:
            name = "predictions.json" if task == "tal" else "predictions.jsonl"
            paths.append(self.outputs.add(report_path(self.out).with_name(name), "--out"))
        if self.export is not None:
            paths.append(self.outputs.add(self.export, "--export"))
        for path in paths if task == "as" else ():
            self.outputs.add(path.with_name(f"{path.stem}_scores.npz"), "class scores next to")
        return paths

    def write_predictions(
        self, paths: list[Path], task: str, predictions: Predictions, split: str, *, external_labels: bool
    ) -> None:
        """Write the predictions of a split into `prediction_paths`."""
        with self.outputs.writing():
            for path in paths:
                export_predictions(path, task, predictions, split, external_labels=external_labels)
        for path in paths:
            self.messages.append(f"  wrote {path}")
            if path.suffix.lower() == ".zip":
                for name in missing_submissions(path):
                    message = f"    lacks {name}, which the server takes too: export that split to the same file"
                    self.messages.append(message)

    def report(self, task: str, predictions: Predictions | None, *, train_split: str | None = None) -> dict:
        """metrics.json of predictions, as `evaluate`."""
        return evaluate(
            task,
            predictions,
            self.manifest,
            self.split,
            train_split=train_split or self.floor_split,
            protocol=self.protocol,
            interval_seed=self.interval_seed,
            external_labels=self.external_labels,
        )

    @property
    def floor_split(self) -> str | None:
        """The split that floors are fitted on."""
        return self.train_split or default_train_split(self.manifest, self.split)

    def finish(self, task: str, report: dict | None, predictions: Predictions | None) -> dict | None:
        """Complete and write the report. None: the split has no annotations."""
        if report is None:
            self.messages.append(f"split {self.split!r} has no annotations for {task}: nothing is scored")
            return None
        report |= provenance(self.manifest_path, [*self.without, *self.only])
        if self.analyse:
            if predictions is None:
                raise InputError("unloc eval: --analyse needs one file of predictions, RUN or --baseline")
            report["analysis"] = analyse(task, predictions, self.selected)
        if self.out is not None:
            with self.outputs.writing():
                write_report(report, self.out)
        return report


def evaluate_floors(evaluation: Evaluation) -> dict:
    """The report of the blind floors alone."""
    task = evaluation.required_task
    require_annotations(task, evaluation.selected, evaluation.split)
    return evaluation.finish(task, evaluation.report(task, None), None)


def evaluate_file(
    evaluation: Evaluation,
    path: Path,
    *,
    strict: bool = False,
    class_splits: Path | None = None,
    vocabularies: list[Path] | None = None,
    control: Path | None = None,
) -> dict | None:
    """The report of a file of predictions; None if the annotations are hidden and the predictions are only exported.

    With a folder of `class_splits` the report is zero-shot: the unseen classes of each. `strict`: bad predictions raise
    PredictionError. Raises as `PredictionFiles.read`.
    """
    task = evaluation.required_task
    files = PredictionFiles(task=task, manifest=evaluation.manifest, split=evaluation.split, keep=evaluation.keep)
    if class_splits is None and (vocabularies or control):
        raise InputError("unloc eval: --vocabulary and --control belong to --zero-shot")
    if class_splits is not None and task != "tal":
        raise InputError("unloc eval --zero-shot: it scores --predictions of --task tal")
    is_scored = evaluation.has_annotations(task)
    paths = evaluation.prediction_paths(task, with_report=False)
    given = screened = report = None
    if class_splits is not None:
        report, screened = _zero_shot_report(evaluation, path, files, class_splits, vocabularies or [], control)
    else:
        given, screened = files.read(path)
        if is_scored:
            report = evaluation.report(task, screened)
            require_score(path, report["metrics"], files.problems)
            report |= files.description(evaluation.external_labels)
    problems = list(files.problems.lines())
    if strict and problems:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems)}")
    evaluation.messages += [f"{path}: {files.formats}", *(f"  bad predictions: {line}" for line in problems)]
    if paths:
        external = evaluation.external_labels or bool(files.external_labels)
        evaluation.write_predictions(paths, task, given, evaluation.split, external_labels=external)
    return evaluation.finish(task, report, screened)


def _zero_shot_report(
    evaluation: Evaluation,
    path: Path,
    files: PredictionFiles,
    class_splits: Path,
    vocabularies: list[Path],
    control: Path | None,
) -> tuple[dict, pd.DataFrame | None]:
    """(report of all class splits, detections): for one file also the score of all classes, for a folder the mean.

    Raises InputError if there is a folder of predictions for several shares of seen classes.
    """
    selected, train_split = evaluation.selected, evaluation.floor_split
    rules = protocol_for("tal", evaluation.protocol, selected)
    controls = replace(files, manifest=nonsense_manifest(files.manifest), files={})
    detections = None if path.is_dir() else files.read(path)[1]
    shares = zero_shot(
        _predictions_of(path, files) if detections is None else lambda _: detections,
        selected,
        read_class_splits(class_splits),
        rules.name,
        control_of=_predictions_of(control, controls) if control else None,
        train=evaluation.manifest.select(train_split) if train_split else None,
        vocabularies={vocabulary.stem: read_vocabulary(vocabulary) for vocabulary in vocabularies},
    )
    if detections is not None:
        report = evaluation.report("tal", detections)
    elif len(shares) > 1:
        raise InputError(f"--predictions {path}: a folder holds one share of seen classes; got {', '.join(shares)}")
    else:
        (share,) = shares.values()
        report = header("tal", selected, evaluation.split, rules)
        report |= {"metrics": share["mean"], "floors": share.get("floors", {})}
    require_score(path, report["metrics"], files.problems)
    report |= files.description(evaluation.external_labels) | {"zero_shot": shares}
    if control:
        report["control_sha256"] = controls.description(by_command=False)["predictions_sha256"]
    return report, detections


def _predictions_of(path: Path, files: PredictionFiles) -> PredictionsOf:
    """Detections of one file for every class split, or of each split's own file below a folder.

    NAME.json or NAME/predictions.json, NAME being that of the split or its last part. Raises MissingError if a split
    has no file.
    """
    last: dict[Path, pd.DataFrame] = {}

    def predictions_of(split: ClassSplit) -> pd.DataFrame:
        names = (split.name, split.name.rsplit("/", 1)[-1])
        candidates = [path / name / "predictions.json" for name in names] + [path / f"{name}.json" for name in names]
        file = next(filter(Path.is_file, candidates), None) if path.is_dir() else path
        if file is None:
            expected = f"{split.name}/predictions.json"
            raise MissingError(f"{path}: no predictions for class split {split.name!r}; expected {expected}")
        if file not in last:
            last.clear()  # of the many files of a folder only the last is kept
            last[file] = files.read(file)[1]
        return last[file]

    return predictions_of
