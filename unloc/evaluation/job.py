"""Evaluations from files to files, as `unloc eval` runs them; those that run a model are in `unloc.inference`."""

import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from unloc import __version__
from unloc.annotations.reading import Problems, listed_filter, read_names
from unloc.annotations.schema import Manifest, cached_durations, load_manifest, restricted
from unloc.cache.opening import open_cache
from unloc.errors import InputError, MissingError, PredictionError
from unloc.evaluation.analysis import PLOTS, analyse, write_plots
from unloc.evaluation.evaluator import evaluate, has_annotations, header, require_annotations
from unloc.evaluation.protocols import protocol_for
from unloc.evaluation.screening import SCREENS, Predictions, require_match
from unloc.evaluation.tables import latex_table, metric_table
from unloc.evaluation.zero_shot import ClassSplit, nonsense_manifest, read_class_splits, zero_shot
from unloc.files import file_sha256, url_of, write_file
from unloc.predictions.reading import PredictionFile, read_predictions
from unloc.predictions.records import StoredScores
from unloc.predictions.writing import export_predictions, missing_submissions
from unloc.tasks import task_named

TRAIN_SPLITS = ("train", "training", "validation")  # THUMOS14 has no other than `validation`
RECORD = ".unloc-eval.json"
VERSIONED = {"numpy": "numpy", "pandas": "pandas", "torch": "torch", "open_clip": "open_clip_torch", "zarr": "zarr"}


@dataclass(kw_only=True)
class Evaluation:
    """One evaluation of a split: its annotations, the options of scoring, and the files it writes.

    `manifest` is without the videos left out of the split, `selected` that split of it; `messages` and `warnings` are
    for the user. Raises as `load_manifest`; InputError if an output would replace an input or what no evaluation wrote.
    """

    manifest_path: Path
    split: str
    task: str | None = None
    cache: Path | None = None  # of the videos: durations that the manifest does not state, and tokens for a model
    train_split: str | None = None  # that floors are fitted on; by default the one that models are trained on
    protocol: str | None = None
    interval_seed: int | None = None
    rejection: bool = False
    external_labels: bool = False
    analyse: bool = False
    without: list[Path] = field(default_factory=list)
    only: list[Path] = field(default_factory=list)
    out: Path | None = None  # folder, or file of the report
    export: Path | None = None  # file for the predictions
    csv: Path | None = None  # files for the table of metrics
    latex: Path | None = None
    inputs: list[Path] = field(default_factory=list)  # further files that are read

    def __post_init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.scored_file: Path | None = None  # of predictions
        lists, self.report_path = [*self.without, *self.only], None
        self.outputs = Outputs([self.manifest_path, *self.inputs, *lists])
        if self.out is not None:
            self.write_to(self.out)
        for option, path in (("--csv", self.csv), ("--latex", self.latex)):
            if path is not None:
                self.outputs.add(path, option)
        manifest = load_manifest(self.manifest_path)
        if self.cache is not None:
            manifest = cached_durations(manifest, open_cache(self.cache))
        manifest.select(self.train_split)
        before = len(manifest.select(self.split).videos)
        self.keep = listed_filter(self.without, self.only)
        if lists:
            manifest = restricted(manifest, self.keep, self.split)
            left = int((manifest.videos["split"] == self.split).sum())
            if not left:
                raise InputError(f"--without, --only: no video of split {self.split!r} is left of {before}")
            self.messages.append(f"{before - left} of {before} videos are left out of annotations and predictions")
        self.manifest, self.selected = manifest, manifest.select(self.split)
        names = (name for name in TRAIN_SPLITS if name in manifest.splits and name != self.split)
        self.floor_split = self.train_split or next(names, None)

    def scored_task(self, task: str) -> str:
        """What is scored of the task: mr with null queries is `rejection`. Raises InputError if another task has it."""
        if self.rejection and task != "mr":
            raise InputError(f"unloc eval: --rejection scores queries of --task mr, not {task}")
        return "rejection" if self.rejection else task_named(task).name

    def write_to(self, out: Path) -> None:
        """Name the folder, or file, of the report. Raises InputError as `Outputs.add`."""
        self.report_path = out if out.suffix == ".json" else out / "metrics.json"
        self.outputs.add(self.report_path, "--out")
        for name in PLOTS if self.analyse else ():
            self.outputs.add(self.report_path.parent / "analysis" / name, "--analyse")

    def prepare(self, task: str, *, with_report: bool) -> list[Path]:
        """The files for predictions: next to metrics.json, and that of --export. Raises InputError if the split can be
        neither scored nor exported, and as `Outputs.add`.
        """
        paths = []
        if self.export is None:
            require_annotations(task, self.selected, self.split)
        if self.report_path is not None and with_report:
            name = "predictions.json" if task in ("tal", "cls") else "predictions.jsonl"
            paths.append(self.outputs.add(self.report_path.with_name(name), "--out"))
        if self.export is not None:
            paths.append(self.outputs.add(self.export, "--export"))
        for path in paths if task == "as" else ():
            self.outputs.add(path.with_name(f"{path.stem}_scores.npz"), "class scores next to")
        return paths

    def write_predictions(self, paths: list[Path], task: str, predictions: Predictions, split: str) -> None:
        """Write the predictions of a split."""
        with self.outputs.writing():
            for path in paths:
                export_predictions(path, task, predictions, split, external_labels=self.external_labels)
        for path in paths:
            self.messages.append(f"  wrote {path}")
            for name in missing_submissions(path) if path.suffix.lower() == ".zip" else ():
                advice = "which the server takes too: export that split to the same file"
                self.messages.append(f"    lacks {name}, {advice}")

    def report(self, task: str, predictions: Predictions | None) -> dict | None:
        """metrics.json of predictions, as `evaluate`; None if the split has no annotations."""
        if not has_annotations(task, self.selected):
            return None
        options = {"protocol": self.protocol, "interval_seed": self.interval_seed}
        report = evaluate(task, predictions, self.manifest, self.split, train_split=self.floor_split, **options)
        return report | {"external_labels": self.external_labels} | ({"rejection": True} if self.rejection else {})

    def finish(self, task: str, report: dict | None, predictions: Predictions | None) -> dict | None:
        """Complete the report with all that its figures depend on besides predictions, and write it. None: the split
        has no annotations. Undefined figures and the open end of a bin are written as null.
        """
        if report is None:
            self.messages.append(f"split {self.split!r} has no annotations for {task}: nothing is scored")
            return None
        if self.analyse and predictions is None:
            raise InputError("unloc eval: --analyse needs one file of predictions, RUN or --baseline")
        versions = {name: version(package) for name, package in VERSIONED.items() if name in sys.modules}
        files = {"manifest": self.manifest_path, "cache": self.cache, "predictions": self.scored_file}
        files = {name: path and (url_of(path) or str(path.resolve())) for name, path in files.items()}
        for name, paths in (("without", self.without), ("only", self.only)):
            files[name] = [str(path.resolve()) for path in paths]
        report |= {
            "files": files,
            "annotations_sha256": file_sha256(self.manifest_path),
            "video_lists": {str(path): file_sha256(path) for path in [*self.without, *self.only]},
            "versions": {"unloc": __version__, "python": platform.python_version(), **versions},
        }
        if self.analyse:
            report["analysis"] = analyse(task, predictions, self.selected)
        with self.outputs.writing():
            if self.csv is not None:
                write_file(self.csv, metric_table(report).to_csv(lineterminator="\n"))
            if self.latex is not None:
                write_file(self.latex, latex_table(report))
            if self.report_path is not None:
                folder = self.report_path.parent
                if self.analyse:
                    plots = write_plots(report["analysis"], folder / "analysis")
                    report["analysis"]["plots"] = [str(plot.relative_to(folder)) for plot in plots]
                without_nan = json.loads(json.dumps(report), parse_constant=lambda _: None)
                write_file(self.report_path, json.dumps(without_nan, indent=1, ensure_ascii=False) + "\n")
        return report


class Outputs:
    """The files that one evaluation writes: never its inputs, nor files that no evaluation wrote: a later one may
    replace only what a hidden `.unloc-eval.json` in their folder lists with its hash (null while it is written).
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._taken = {path.resolve(): "an input" for path in inputs}
        self._paths: list[Path] = []

    def add(self, path: Path, option: str) -> Path:
        """The path, if it may be written. Raises InputError if not."""
        target, written = path.resolve(), _record(path.parent).get(path.name, "")
        reason = f"is {self._taken[target]} of this evaluation" if target in self._taken else ""
        if path.is_dir() or path.name == RECORD:
            reason = "is a folder" if path.is_dir() else "is a record of eval"
        elif not reason and (path.is_symlink() or (path.exists() and written not in (None, file_sha256(path)))):
            reason = "exists, and unloc eval did not write it (or it was changed since)"
        if reason:
            raise InputError(f"{option} {path} {reason}; name another file")
        self._taken[target] = "another output"
        self._paths.append(path)
        return path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The files are written within this block. Raises OSError if a folder cannot be written."""

        def record(hash_of: Callable[[Path], str | None]) -> None:
            for path in self._paths:
                known = _record(path.parent) | {path.name: hash_of(path)}
                write_file(path.with_name(RECORD), json.dumps(known, indent=1) + "\n")

        record(lambda path: None)
        try:
            yield
        finally:
            record(lambda path: file_sha256(path) if path.is_file() else "")


def _record(folder: Path) -> dict[str, str | None]:
    """Name to hash of the files that evaluations wrote into a folder."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class PredictionFiles:
    """One file of predictions or a folder with one for each class split, and what metrics.json states about them."""

    def __init__(self, evaluation: Evaluation, path: Path, manifest: Manifest, problems: Problems) -> None:
        self.evaluation, self.path, self.manifest, self.problems = evaluation, path, manifest, problems
        self.task = evaluation.scored_task(evaluation.task)
        self.files: dict[Path, PredictionFile] = {}  # without their predictions
        self.score_files: set[Path] = set()  # .npz files of class scores that the predictions refer to
        self.read = lru_cache(maxsize=1)(self._read)  # of the many files of a folder only the last

    def _read(self, path: Path) -> tuple[Predictions, Predictions]:
        """The predictions of a file for the videos that are not left out, and those of them that can be scored. Raises
        PredictionError if none belongs to the split, and as `read_predictions`.
        """
        task, split, keep = self.task, self.evaluation.split, self.evaluation.keep
        file = read_predictions(path, task, split=split, problems=self.problems)
        predictions = file.predictions
        if isinstance(predictions, pd.DataFrame):
            predictions = predictions[predictions["video_id"].map(keep).astype(bool)].reset_index(drop=True)
        else:
            predictions = [item for item in predictions if keep(item.video_id)]
            stored = (getattr(item, "scores", None) for item in predictions)
            self.score_files.update(Path(one.file.fid.name) for one in stored if isinstance(one, StoredScores))
        screened = SCREENS[task](predictions, self.manifest.select(split), self.problems)
        require_match(path, task, predictions, screened, self.manifest, split)
        self.files[path] = replace(file, predictions=[])
        return predictions, screened

    def of_split(self, split: ClassSplit) -> pd.DataFrame:
        """Detections of one file for every class split, or of each split's own file below a folder: NAME.json or
        NAME/predictions.json, NAME being that of the split or its last part. Raises MissingError if there is none.
        """
        path, names = self.path, (split.name, split.name.rsplit("/", 1)[-1])
        if path.is_dir():
            files = [path / name / "predictions.json" for name in names] + [path / f"{name}.json" for name in names]
            path = next(filter(Path.is_file, files), None)
        if path is None:
            where = f"{self.path}: no predictions for class split {split.name!r}"
            raise MissingError(f"{where}; expected {split.name}/predictions.json")
        return self.read(path)[1]

    def description(self) -> dict:
        """Formats, hashes and problems of the files, and who states that labels of another model were used."""
        stated = [file.external_labels for file in self.files.values() if file.external_labels is not None]
        by_command, by_file = self.evaluation.external_labels, "by the file" if stated else "nowhere"
        hashes, places = {str(path): file_sha256(path) for path in self.files}, self.problems.places
        return {
            "predictions_format": ", ".join(dict.fromkeys(file.format for file in self.files.values())),
            "predictions_sha256": hashes if len(hashes) > 1 else next(iter(hashes.values()), None),
            "scores_sha256": {path.name: file_sha256(path) for path in sorted(self.score_files)},
            "external_labels": by_command or any(stated),
            "external_labels_stated": "by the command" if by_command and not any(stated) else by_file,
            "bad_predictions": {kind: [number, places[kind][0]] for kind, number in self.problems.counts.items()},
        }


def evaluate_floors(evaluation: Evaluation) -> dict:
    """The report of the blind floors alone."""
    task = evaluation.scored_task(evaluation.task)
    require_annotations(task, evaluation.selected, evaluation.split)
    return evaluation.finish(task, evaluation.report(task, None), None)


def evaluate_file(
    evaluation: Evaluation,
    path: Path,
    strict: bool = False,
    class_splits: Path | None = None,
    vocabularies: Sequence[Path] | None = None,
    control: Path | None = None,
) -> dict | None:
    """The report of a file of predictions; None if the annotations are hidden and the predictions are only exported.

    With a folder of `class_splits` it has the unseen classes of each; of a folder of predictions for one share of seen
    classes the mean. Raises as `PredictionFiles.read`, and if `strict` PredictionError for bad predictions.
    """
    task, manifest, selected = evaluation.scored_task(evaluation.task), evaluation.manifest, evaluation.selected
    files, paths = PredictionFiles(evaluation, path, manifest, Problems()), evaluation.prepare(task, with_report=False)
    evaluation.scored_file = path
    given = screened = report = None
    if class_splits is None or not path.is_dir():
        given, screened = files.read(path)
        report = evaluation.report(task, screened)
    if class_splits is not None:
        rules = protocol_for("tal", evaluation.protocol, selected)
        controls = PredictionFiles(evaluation, control, nonsense_manifest(manifest), files.problems)
        shares = zero_shot(
            files.of_split,
            selected,
            read_class_splits(class_splits),
            rules.name,
            control_of=controls.of_split if control else None,
            train=manifest.select(evaluation.floor_split) if evaluation.floor_split else None,
            vocabularies={vocabulary.stem: read_names(vocabulary, "name") for vocabulary in vocabularies or []},
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
            report["control_sha256"] = controls.description()["predictions_sha256"]
    stated, problems = files.description(), files.problems.lines()
    if report is not None:
        if not any(value > 0 for name, value in report["metrics"].items() if name != "mIoU"):
            none = "no prediction reaches an annotated segment, every metric is 0.00"
            raise PredictionError("; ".join([f"{path}: nothing matches: {none}", *problems]))
        report |= stated
    if strict and problems:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems)}")
    evaluation.messages.append(f"{path}: {stated['predictions_format']}")
    evaluation.messages += [f"  bad predictions: {line}" for line in problems]
    if paths:
        evaluation.external_labels = stated["external_labels"]
        evaluation.write_predictions(paths, task, given, evaluation.split)
    return evaluation.finish(task, report, screened)
