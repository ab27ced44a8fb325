"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unloc.cli import app
from unloc.cli import evaluate_options as options
from unloc.cli.evaluate_output import print_report, write_report
from unloc.errors import InputError, PredictionError

if TYPE_CHECKING:
    from unloc.data.predictions import Problems
    from unloc.data.schema import Manifest
    from unloc.inference.load import LoadedModel


@app.command("eval")
def evaluate_command(
    run: options.Run = None,
    manifest: options.ManifestFile = None,
    cache: options.CacheFolder = None,
    split: options.Split = "test",
    train_split: options.TrainSplit = None,
    predictions: options.Predictions = None,
    baseline: options.Baseline = False,
    floors_only: options.FloorsOnly = False,
    task: options.TaskName = None,
    protocol: options.Protocol = None,
    strict: options.Strict = False,
    intervals: options.Intervals = False,
    seed: options.Seed = 0,
    external_labels: options.ExternalLabels = False,
    export: options.Export = None,
    analyse: options.Analyse = False,
    zero_shot: options.ZeroShot = None,
    vocabulary: options.Vocabulary = None,
    control: options.Control = None,
    out: options.Out = None,
    device: options.Device = "auto",
) -> None:
    """Metrics of a split in metrics.json and as a table, beside what blind constants score.

    Example: unloc eval --predictions predictions.json --manifest anet.jsonl --task tal --split validation --intervals
    """
    _require_one_source(run, predictions, baseline, floors_only, cache)
    if export is not None and (floors_only or zero_shot is not None):
        raise InputError("unloc eval: --export writes predictions; with --floors-only and --zero-shot there are none")
    loaded, scoring = _annotations(manifest, task, split, train_split, protocol)
    scored = scoring | {"interval_seed": seed if intervals else None, "external_labels": external_labels}
    if zero_shot is not None or vocabulary or control:
        lists = {"lists": zero_shot, "vocabularies": vocabulary or [], "control": control}
        report, found = _score_zero_shot(predictions, loaded, task, scored, strict, lists)
    elif floors_only:
        report, found = _floors_only(loaded, task, scoring), None
    elif predictions is not None:
        report, found = _score_file(predictions, loaded, task, scored, strict, export)
    elif baseline:
        report, found = _evaluate_baseline(loaded, cache, task, scored, (out, export))
    else:
        out = out or _run_folder(run) / "eval" / split
        scored |= {"train_split": train_split}
        report, found = _evaluate_run(run, loaded, cache, task, scored, (out, export), device)
    if analyse:
        report["analysis"] = _analysis(report["task"], found, loaded.select(split))
    if out is not None:
        write_report(report, out)
    print_report(report)


def _require_one_source(
    run: Path | None, predictions: Path | None, baseline: bool, floors_only: bool, cache: Path | None
) -> None:
    if (run is not None) + (predictions is not None) + baseline + floors_only != 1:
        raise InputError("unloc eval: give one of RUN, --predictions FILE or --baseline, or --floors-only")
    if cache is None and (run is not None or baseline):
        raise InputError("unloc eval: --cache is needed with RUN and with --baseline")


def _annotations(
    path: Path | None, task: str | None, split: str, train_split: str | None, protocol: str | None
) -> tuple["Manifest", dict]:
    """The manifest, with something to score the task with in the split, and the options that say by what to score."""
    from unloc.data.schema import load_manifest
    from unloc.evaluation.evaluator import default_train_split, require_annotations

    if path is None:
        raise InputError("unloc eval: --manifest is needed: it holds the annotations")
    manifest = load_manifest(path)
    manifest.select(train_split)
    require_annotations(task, manifest.select(split), split)
    train_split = train_split or default_train_split(manifest, split)
    return manifest, {"split": split, "train_split": train_split, "protocol": protocol}


def _analysis(task: str, predictions: object, selected: "Manifest") -> dict:
    from unloc.evaluation.analysis import analyse

    if predictions is None:
        raise InputError("unloc eval: --analyse needs one file of predictions, RUN or --baseline")
    return analyse(task, predictions, selected)


def _needed_task(task: str | None, option: str) -> str:
    from unloc.tasks import task_named

    if task is None:
        raise InputError(f"unloc eval {option}: --task is needed: mr, tal, as or hd")
    return task_named(task).name


def _floors_only(manifest: "Manifest", task: str | None, options: dict) -> dict:
    from unloc.evaluation.evaluator import floors_report

    return floors_report(_needed_task(task, "--floors-only"), manifest, **options)


def _score_file(
    path: Path, manifest: "Manifest", task: str | None, scoring: dict, strict: bool, export: Path | None
) -> tuple[dict, object]:
    from unloc.data.prediction_reading import read_predictions
    from unloc.data.prediction_writing import export_predictions
    from unloc.data.predictions import Problems
    from unloc.evaluation.evaluator import evaluate
    from unloc.evaluation.screening import screen_predictions

    task, problems = _needed_task(task, "--predictions"), Problems()
    held = read_predictions(path, task, split=scoring["split"], problems=problems)
    screened = screen_predictions(task, held.predictions, manifest.select(scoring["split"]), problems)
    typer.echo(f"{path}: {held.format}")
    told = _tell(problems, path, strict)
    external = scoring["external_labels"] or bool(held.external_labels)
    if export is not None:
        if export.resolve() == path.resolve():
            raise InputError(f"--export {export} is the file of predictions itself; name another")
        export_predictions(export, task, held.predictions, scoring["split"], external_labels=external)
        typer.echo(f"  wrote {export}")
    report = evaluate(task, screened, manifest, **scoring | {"external_labels": external})
    told["predictions_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    told["external_labels_stated"] = _stated(held.external_labels, scoring["external_labels"])
    return report | {"predictions_format": held.format} | told, screened


def _stated(by_file: bool | None, by_command: bool) -> str:
    """Where it is said whether labels of another model were used."""
    if by_command and not by_file:
        return "by the command"
    return "nowhere" if by_file is None else "by the file"


def _tell(problems: "Problems", path: Path, strict: bool) -> dict:
    """Print what is wrong with the predictions, one line a kind, and return it. Raises PredictionError if strict."""
    if strict and problems.counts:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems.lines())}")
    for line in problems.lines():
        typer.echo(f"  bad predictions: {line}")
    return {"bad_predictions": {kind: [number, problems.first[kind]] for kind, number in problems.counts.items()}}


def _score_zero_shot(
    path: Path | None, manifest: "Manifest", task: str | None, scoring: dict, strict: bool, lists: dict
) -> tuple[dict, object]:
    """The report of all class splits; beside it that of all classes where one file serves every split."""
    from unloc.cli.evaluate_zero_shot import screened_detections, single_share, zero_shot_report
    from unloc.data.predictions import Problems
    from unloc.evaluation.evaluator import evaluate, header

    if lists["lists"] is None:
        raise InputError("unloc eval: --vocabulary and --control belong to --zero-shot")
    if path is None or _needed_task(task, "--zero-shot") != "tal":
        raise InputError("unloc eval --zero-shot: it scores --predictions of --task tal")
    problems, selected = Problems(), manifest.select(scoring["split"])
    detections = None if path.is_dir() else screened_detections(path, selected, problems)
    source = path if detections is None else detections
    found = zero_shot_report(source, manifest, scoring, **lists, problems=problems)
    told = _tell(problems, path, strict)
    if detections is not None:
        report = evaluate("tal", detections, manifest, **scoring)
    else:
        share = single_share(found, path)
        report = header("tal", selected, scoring["split"], scoring["protocol"]) | {
            "metrics": share["mean"],
            "floors": share.get("floors", {}),
            "external_labels": scoring["external_labels"],
        }
    return report | {"zero_shot": found} | told, detections


def _write_predictions(task: str, predictions: object, scoring: dict, out: Path | None, export: Path | None) -> None:
    """Predictions beside metrics.json in the format of the task, and in the one that --export asks for."""
    from unloc.data.prediction_writing import export_predictions

    paths = []
    if out is not None:
        folder = out.parent if out.suffix == ".json" else out
        paths.append(folder / ("predictions.json" if task == "tal" else "predictions.jsonl"))
    if export is not None:
        paths.append(export)
    for path in paths:
        export_predictions(path, task, predictions, scoring["split"], external_labels=scoring["external_labels"])
        typer.echo(f"  wrote {path}")


def _evaluate_baseline(
    manifest: "Manifest", cache: str, task: str | None, scoring: dict, written: tuple[Path | None, Path | None]
) -> tuple[dict, object]:
    from unloc.data.cache import open_cache
    from unloc.evaluation.evaluator import evaluate, require_annotations
    from unloc.inference.baseline import baseline_detections, baseline_frames, baseline_moments

    task, selected = _needed_task(task or manifest.tasks[0], "--baseline"), manifest.select(scoring["split"])
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    found = predict(selected, open_cache(cache))
    _write_predictions(task, found, scoring, *written)
    require_annotations(task, selected, scoring["split"])
    return evaluate(task, found, manifest, **scoring), found


def _evaluate_run(
    run: Path,
    manifest: "Manifest",
    cache: str,
    task: str | None,
    scoring: dict,
    written: tuple[Path, Path | None],
    device: str,
) -> tuple[dict, object]:
    """The report of a run. Of a split whose annotations are hidden the predictions are written before that is told."""
    from unloc.data.cache import open_cache
    from unloc.data.vocabulary import names_in_vocabulary
    from unloc.evaluation.evaluator import default_train_split, evaluate, require_annotations
    from unloc.inference.device import described, resolve_device
    from unloc.inference.load import load_model, require_same_cache
    from unloc.inference.run import predict_split
    from unloc.training.trainer import require_task

    where = resolve_device(device)
    loaded, split = load_model(run, where), scoring["split"]
    recipe = loaded.info.recipe
    if task not in (None, recipe.task):
        raise InputError(f"unloc eval: --task {task}, but {run} was trained for {recipe.task}; leave --task out")
    require_task(manifest, recipe.task)
    opened = open_cache(cache)
    require_same_cache(loaded.info.fingerprint, opened.fingerprint, cache)
    asked = _asked_for(loaded, manifest.classes)
    found = predict_split(asked, manifest.select(split), opened)
    _write_predictions(recipe.task, found, scoring, *written)
    require_annotations(recipe.task, manifest.select(split), split)
    train_split = scoring["train_split"] or recipe.data.train_split
    if train_split not in manifest.splits:
        train_split = default_train_split(manifest, split)
    report = evaluate(recipe.task, found, manifest, **scoring | {"train_split": train_split})
    report |= described(where, recipe.train.precision)
    if asked is not loaded:
        report["classes_seen_in_training"] = names_in_vocabulary(manifest.classes, loaded.info.classes)["same"]
    return report, found


def _asked_for(loaded: "LoadedModel", classes: tuple[str, ...]) -> "LoadedModel":
    """The model asked for the classes of the manifest, where they are not those it was trained on (zero-shot).

    Raises InputError for a model whose head knows its own classes only.
    """
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"--manifest has {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))


def _run_folder(run: Path) -> Path:
    """The run that a run folder, one of its checkpoints or a file of that belongs to."""
    folder = run.parent if run.is_file() else run
    is_run = (folder / "recipe.yaml").is_file() or folder.parent.name != "checkpoints"
    return folder if is_run else folder.parent.parent
