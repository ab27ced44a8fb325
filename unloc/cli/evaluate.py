"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import InputError, PredictionError

if TYPE_CHECKING:
    from unloc.data.schema import Manifest

DEFAULT_SEED = 0
SHOWN_OFFICIAL = ("-mAP", "-full-mAP@0.5", "-full-mAP@0.75", "-full-R1@0.5", "-full-R1@0.7")  # of QVHighlights' 84


@app.command("eval")
def evaluate_command(
    run: Annotated[Path | None, typer.Argument(help="Run folder or checkpoint; leave out with --predictions.")] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", "-m", help="Manifest with the annotations.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", "-c", help="Cache of the videos (with RUN).")] = None,
    split: Annotated[str, typer.Option("--split", help="Split to evaluate.")] = "test",
    train_split: Annotated[
        str | None, typer.Option("--train-split", help="Split that blind floors are fitted on (train, training, …).")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="File to score; no model, no torch.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the tower's similarity, without training.")
    ] = False,
    floors_only: Annotated[bool, typer.Option("--floors-only", help="Score blind constants only.")] = False,
    task: Annotated[str | None, typer.Option("--task", help="mr, tal, as or hd (with --predictions).")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Official variant of the metric.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to score bad predictions.")] = False,
    intervals: Annotated[bool, typer.Option("--intervals", help="95 % bootstrap intervals over videos.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the intervals' draws.")] = DEFAULT_SEED,
    external_labels: Annotated[
        bool, typer.Option("--external-labels", help="State that labels of another model were used.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the predictions again: .json, .jsonl, .zip or .csv.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder (or metrics.json) to write.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
) -> None:
    """Metrics of a split in metrics.json and as a table, beside what blind constants score.

    Example: unloc eval --predictions predictions.json --manifest anet.jsonl --task tal --split validation --intervals
    """
    from unloc.data.schema import load_manifest
    from unloc.evaluation.evaluator import default_train_split

    if (run is not None) + (predictions is not None) + baseline + floors_only != 1:
        raise InputError("unloc eval: give one of RUN, --predictions FILE or --baseline, or --floors-only")
    if manifest is None:
        raise InputError("unloc eval: --manifest is needed: it holds the annotations")
    loaded = load_manifest(manifest)
    loaded.select(split)
    train_split = train_split or default_train_split(loaded, split)
    options = {"split": split, "train_split": train_split, "protocol": protocol}
    scoring = options | {"interval_seed": seed if intervals else None, "external_labels": external_labels}
    if floors_only:
        report, target = _floors_only(loaded, task, options), out
    elif predictions is not None:
        report, target = _score_file(predictions, loaded, task, scoring, strict, export), out
    elif cache is None:
        raise InputError("unloc eval: --cache is needed with RUN and with --baseline")
    elif baseline:
        report, target = _evaluate_baseline(loaded, cache, task, scoring, out)
    else:
        report, target = _evaluate_run(run, loaded, cache, scoring, out, device)
    if target is not None:
        write_report(report, target if target.suffix == ".json" else target / "metrics.json")
    print_report(report)


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
) -> dict:
    from unloc.data.prediction_reading import read_predictions
    from unloc.data.prediction_writing import export_predictions
    from unloc.data.predictions import Problems
    from unloc.evaluation.evaluator import evaluate
    from unloc.evaluation.screening import screen_predictions

    task, problems = _needed_task(task, "--predictions"), Problems()
    held = read_predictions(path, task, split=scoring["split"], problems=problems)
    screened = screen_predictions(task, held.predictions, manifest.select(scoring["split"]), problems)
    typer.echo(f"{path}: {held.format}")
    if strict and problems.counts:
        raise PredictionError(f"{path}: bad predictions (--strict): {'; '.join(problems.lines())}")
    for line in problems.lines():
        typer.echo(f"  bad predictions: {line}")
    external = scoring["external_labels"] or bool(held.external_labels)
    if export is not None:
        export_predictions(export, task, held.predictions, scoring["split"], external_labels=external)
        typer.echo(f"  wrote {export}")
    report = evaluate(task, screened, manifest, **scoring | {"external_labels": external})
    stated = "by the file" if held.external_labels is not None else "by the command"
    report |= {"predictions_format": held.format, "external_labels_stated": stated}
    return report | {"bad_predictions": {kind: [n, problems.first[kind]] for kind, n in problems.counts.items()}}


def write_predictions(task: str, predictions: object, folder: Path) -> None:
    """Predictions into a folder in the format of the task."""
    from unloc.data.prediction_writing import write_detections, write_frames, write_moments

    writer = {"tal": write_detections, "as": write_frames, "mr": write_moments, "hd": write_moments}[task]
    writer(folder / ("predictions.json" if task == "tal" else "predictions.jsonl"), predictions)


def _evaluate_baseline(
    manifest: "Manifest", cache: Path, task: str | None, scoring: dict, out: Path | None
) -> tuple[dict, Path | None]:
    from unloc.data.cache import open_cache
    from unloc.evaluation.evaluator import evaluate
    from unloc.inference.baseline import baseline_detections, baseline_frames, baseline_moments

    task = _needed_task(task or manifest.tasks[0], "--baseline")
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    found = predict(manifest.select(scoring["split"]), open_cache(cache))
    if out is not None:
        write_predictions(task, found, out)
    return evaluate(task, found, manifest, **scoring), out


def _evaluate_run(
    run: Path, manifest: "Manifest", cache: Path, scoring: dict, out: Path | None, device: str
) -> tuple[dict, Path]:
    from unloc.data.cache import open_cache
    from unloc.evaluation.evaluator import evaluate
    from unloc.inference.load import load_model, require_same_cache
    from unloc.inference.run import predict_split
    from unloc.training.run import resolve_device
    from unloc.training.trainer import require_task

    loaded = load_model(run, resolve_device(device))
    task = loaded.info.recipe.task
    require_task(manifest, task)
    opened = open_cache(cache)
    require_same_cache(loaded.info.fingerprint, opened.fingerprint, cache)
    found = predict_split(loaded, manifest.select(scoring["split"]), opened)
    folder = out or _run_folder(run) / "eval" / scoring["split"]
    write_predictions(task, found, folder)
    scoring = scoring | {"train_split": loaded.info.recipe.data.train_split}
    return evaluate(task, found, manifest, **scoring), folder


def _run_folder(run: Path) -> Path:
    return run.parent.parent if run.parent.name == "checkpoints" else run


def write_report(report: dict, path: Path) -> None:
    """metrics.json, whole or not at all; an undefined figure is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    text = json.dumps(_without_nan(report), indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(report: dict) -> None:
    """The metrics beside every blind floor, aligned, with what must be known to compare them."""
    typer.echo(f"{report['manifest']} {report['split']}: {report['task']} by protocol {report['protocol']}")
    typer.echo(f"  ties: {report['tie_rule']}")
    if "coverage" in report:
        _print_coverage(report)
    columns = {"ours": report["metrics"]} if "metrics" in report else {}
    missing = report.get("coverage", {}).get("metrics_without_missing")
    columns |= {"answered": missing} if missing else {}
    _print_table(columns | report["floors"], report.get("intervals", {}))


def _print_coverage(report: dict) -> None:
    coverage, external = report["coverage"], "used" if report["external_labels"] else "none"
    words = f"{coverage['videos_predicted']} of {coverage['videos_annotated']} annotated videos have predictions"
    if "queries_annotated" in coverage:
        words += f", {coverage['queries_predicted']} of {coverage['queries_annotated']} queries"
    if "metrics_without_missing" in coverage:
        words += "; `answered` leaves out the rest"
    typer.echo(f"  {words}\n  external labels: {external}, stated {report.get('external_labels_stated', 'by us')}")


def _print_table(columns: dict[str, dict[str, float]], intervals: dict[str, list[float]]) -> None:
    widths = [max(9, len(name) + 2) for name in columns]
    header = "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    typer.echo(f"{'metric':26}{header}{'  95 % of draws' if intervals else ''}")
    for key in next(iter(columns.values())):
        if key.startswith("MR-") and not key.endswith(SHOWN_OFFICIAL):
            continue
        cells = "".join(
            f"{values.get(key, math.nan):{width}.2f}" for values, width in zip(columns.values(), widths, strict=True)
        )
        ends = "  {:.2f} to {:.2f}".format(*intervals[key]) if key in intervals else ""
        typer.echo(f"{key:26}{cells}{ends}")
