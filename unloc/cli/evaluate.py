"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unloc.cli import app
from unloc.errors import InputError


@app.command("eval")
def evaluate_command(
    run: Annotated[Path | None, typer.Argument(help="Run folder or checkpoint; leave out with --predictions.")] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", "-m", help="Manifest with the annotations.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", "-c", help="Cache of the videos (with RUN).")] = None,
    split: Annotated[str, typer.Option("--split", help="Split to evaluate.")] = "test",
    train_split: Annotated[str, typer.Option("--train-split", help="Split that blind floors are fitted on.")] = "train",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="File to score; no model, no torch.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the tower's similarity, without training.")
    ] = False,
    task: Annotated[str | None, typer.Option("--task", help="mr, tal, as or hd (with --predictions).")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Official variant of the metric.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder (or metrics.json) to write.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
) -> None:
    """Metrics of a split in metrics.json and as a table, beside what blind constants score.

    Example: unloc eval runs/mr --manifest data/mr.jsonl --cache data/cache --split test
    """
    from unloc.data.schema import load_manifest

    if (run is not None) + (predictions is not None) + baseline != 1:
        raise InputError("unloc eval: give one of RUN, --predictions FILE or --baseline")
    if manifest is None:
        raise InputError("unloc eval: --manifest is needed: it holds the annotations")
    loaded = load_manifest(manifest)
    loaded.select(split)
    options = {"split": split, "train_split": train_split, "protocol": protocol}
    if predictions is not None:
        report = _score_file(predictions, loaded, task, options)
        target = out
    elif cache is None:
        raise InputError("unloc eval: --cache is needed with RUN and with --baseline")
    elif baseline:
        report, target = _evaluate_baseline(loaded, cache, task, options, out)
    else:
        report, target = _evaluate_run(run, loaded, cache, options, out, device)
    if target is not None:
        _write_report(report, target if target.suffix == ".json" else target / "metrics.json")
    print_report(report)


def _score_file(path: Path, manifest: object, task: str | None, options: dict) -> dict:
    from unloc.evaluation.evaluator import evaluate
    from unloc.tasks import task_named

    if task is None:
        raise InputError("unloc eval --predictions: --task is needed: mr, tal, as or hd")
    task_named(task)
    return evaluate(task, read_predictions(task, path), manifest, **options)


def read_predictions(task: str, path: Path) -> object:
    """Predictions of a file in the format of the task."""
    from unloc.data.predictions import read_detections, read_frames, read_moments

    return {"tal": read_detections, "as": read_frames, "mr": read_moments, "hd": read_moments}[task](path)


def write_predictions(task: str, predictions: object, folder: Path) -> None:
    """Predictions into a folder in the format of the task."""
    from unloc.data.predictions import write_detections, write_frames, write_moments

    writer = {"tal": write_detections, "as": write_frames, "mr": write_moments, "hd": write_moments}[task]
    writer(folder / ("predictions.json" if task == "tal" else "predictions.jsonl"), predictions)


def _evaluate_baseline(
    manifest: object, cache: Path, task: str | None, options: dict, out: Path | None
) -> tuple[dict, Path | None]:
    from unloc.data.cache import open_cache
    from unloc.evaluation.evaluator import evaluate
    from unloc.inference.baseline import baseline_detections, baseline_frames, baseline_moments
    from unloc.tasks import task_named

    task = task or manifest.tasks[0]
    task_named(task)
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    found = predict(manifest.select(options["split"]), open_cache(cache))
    if out is not None:
        write_predictions(task, found, out)
    return evaluate(task, found, manifest, **options), out


def _evaluate_run(
    run: Path, manifest: object, cache: Path, options: dict, out: Path | None, device: str
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
    found = predict_split(loaded, manifest.select(options["split"]), opened)
    folder = out or _run_folder(run) / "eval" / options["split"]
    write_predictions(task, found, folder)
    options = options | {"train_split": loaded.info.recipe.data.train_split}
    return evaluate(task, found, manifest, **options), folder


def _run_folder(run: Path) -> Path:
    return run.parent.parent if run.parent.name == "checkpoints" else run


def _write_report(report: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def print_report(report: dict) -> None:
    """The metrics beside every blind floor, aligned."""
    floors = report["floors"]
    coverage = report["coverage"]
    typer.echo(
        f"{report['manifest']} {report['split']}: {report['task']} by protocol {report['protocol']}; "
        f"{coverage['videos_predicted']} of {coverage['videos_annotated']} annotated videos have predictions"
    )
    widths = [max(9, len(name) + 2) for name in floors]
    header = "".join(f"{name:>{width}}" for name, width in zip(floors, widths, strict=True))
    typer.echo(f"{'metric':26}{'ours':>9}{header}")
    for key, value in report["metrics"].items():
        cells = "".join(
            f"{values.get(key, float('nan')):{width}.2f}" for values, width in zip(floors.values(), widths, strict=True)
        )
        typer.echo(f"{key:26}{value:9.2f}{cells}")
