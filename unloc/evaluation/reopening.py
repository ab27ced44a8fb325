"""What `unloc eval` has scored, opened again from a run or from metrics.json, for reports and comparisons."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.reading import Problems
from unloc.errors import InputError, MissingError
from unloc.evaluation.evaluator import Scores, require_annotations, scores_of
from unloc.evaluation.job import Evaluation, PredictionFiles
from unloc.evaluation.screening import Predictions
from unloc.files import file_sha256
from unloc.predictions.reading import is_manifest, read_predictions


def run_folder(run: Path) -> Path:
    """The run that a run folder, one of its checkpoints or a file in a checkpoint belongs to."""
    folder = run.parent if run.is_file() else run
    is_run = (folder / "recipe.yaml").is_file() or folder.parent.name != "checkpoints"
    return folder if is_run else folder.parent.parent


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Predictions of a split, and the annotations they are scored on."""

    name: str  # what the user called it
    evaluation: Evaluation
    task: str  # `rejection`: mr with null queries
    path: Path  # file of the predictions
    predictions: Predictions  # those that can be scored
    report: dict  # metrics.json; empty for a file that was not scored yet
    problems: Problems  # of the predictions

    def scores(self) -> Scores:
        """What metrics are computed from."""
        return scores_of(self.task, self.predictions, self.evaluation.selected, self.evaluation.protocol)


def find_report(source: Path, task: str | None = None, split: str | None = None) -> Path | None:
    """metrics.json of a run, of a folder that `unloc eval --out` wrote, or the file itself; None for another file.
    Raises MissingError where there is none, InputError for a manifest or several of that task and split.
    """
    if not source.exists():
        raise MissingError(f"{source} does not exist; expected a run, metrics.json or a file of predictions")
    if source.is_file() and is_manifest(source):
        expected = "expected a run, metrics.json or predictions"
        raise InputError(f"{source}: is a manifest, which --manifest takes; {expected}")
    if source.is_file() and source.parent.parent.name != "checkpoints":
        with source.open("rb") as file:
            return source if re.match(rb'\{\s*"task":', file.read(100)) else None
    folder = run_folder(source)
    direct = folder / "metrics.json"
    found = [direct] if direct.is_file() else sorted(folder.glob("eval/**/metrics.json"))
    reports = {path: read_report(path) for path in found}
    wanted = {"task": task, "split": split}
    chosen = [path for path, one in reports.items() if all(value in (None, one[key]) for key, value in wanted.items())]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(f"{one['task']} on {one['split']}" for one in reports.values())
    if chosen:
        raise InputError(f"{source}: has evaluations of {there}; choose one with --split and --task")
    asked = " ".join(value for value in (task, split) if value)
    problem = f"no evaluation of {asked} (has {there})" if there else "no evaluation (metrics.json) here"
    raise MissingError(f"{source}: {problem}; `unloc eval` makes one")


def read_report(path: Path) -> dict:
    """The content of metrics.json. Raises InputError where it is damaged."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report | {"task": report["task"], "split": report["split"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a metrics.json that can be read; run `unloc eval` again") from None


def predictions_of(path: Path, report: dict) -> Path:
    """The file of predictions that a metrics.json is of. Raises InputError where it is absent or has changed."""
    stated, names = (report.get("files") or {}).get("predictions"), ("predictions.json", "predictions.jsonl")
    files = [Path(stated)] if stated else [path.with_name(name) for name in names]
    sha256 = report.get("predictions_sha256")
    if not isinstance(sha256, str):
        raise InputError(f"{path}: is not of one file of predictions; expected a report of a model, or of one file")
    for file in files:
        if file.is_file() and file_sha256(file) == sha256:
            return file
    problem = "has changed since" if any(file.is_file() for file in files) else "does not exist"
    raise InputError(f"{path}: its file of predictions {files[0]} {problem}; run `unloc eval` again")


def reopen(
    source: Path,
    *,
    manifest: Path | None = None,
    split: str | None = None,
    task: str | None = None,
    cache: Path | None = None,
) -> Scored:
    """Predictions with their annotations, as metrics.json states them, or of a file by the options.

    `manifest` and `cache` say where the files are now, if they were moved. Raises as `find_report`, `Evaluation` and
    `read_predictions`; InputError where annotations or predictions have changed since they were scored.
    """
    path, report, options = find_report(source, task, split), {}, {}
    if path is None:
        if manifest is None or split is None:
            raise InputError(f"{source}: a file of predictions needs --manifest and --split, which score it")
        options, predictions = {"task": task or read_predictions(source, None).task, "split": split}, source
    else:
        report = read_report(path)
        files, predictions = report.get("files") or {}, predictions_of(path, report)
        if manifest is None and not files.get("manifest"):
            raise InputError(f"{path}: states no manifest; give it with --manifest")
        manifest, cache = manifest or Path(files["manifest"]), cache or (files.get("cache") and Path(files["cache"]))
        if not manifest.is_file() or file_sha256(manifest) != report["annotations_sha256"]:
            problem = "are not those of its score" if manifest.is_file() else "do not exist"
            raise InputError(f"{path}: annotations {manifest} {problem}; give --manifest, or run `unloc eval` again")
        options = {key: report.get(key) for key in ("task", "split", "protocol")} | {"rejection": "rejection" in report}
        options |= {key: [Path(name) for name in files.get(key, ())] for key in ("without", "only")}
    evaluation, problems = Evaluation(manifest_path=manifest, cache=cache, **options), Problems()
    scored = evaluation.scored_task(evaluation.task)
    require_annotations(scored, evaluation.selected, evaluation.split)
    _, screened = PredictionFiles(evaluation, predictions, evaluation.manifest, problems).read(predictions)
    found = {"predictions": screened, "report": report, "problems": problems}
    return Scored(name=str(source), path=predictions, evaluation=evaluation, task=scored, **found)
