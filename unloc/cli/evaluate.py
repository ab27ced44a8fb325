"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

from pathlib import Path
from typing import Annotated

import typer

from unloc.cli import app
from unloc.cli.evaluate_output import print_report
from unloc.cli.progress import progress
from unloc.errors import InputError

Option = typer.Option


@app.command("eval")
def evaluate_command(
    run: Annotated[Path | None, typer.Argument(help="Run folder or checkpoint; leave out with --predictions.")] = None,
    manifest: Annotated[Path | None, Option("--manifest", "-m", help="Manifest with the annotations.")] = None,
    cache: Annotated[
        Path | None, Option("--cache", "-c", help="Cache: tokens for RUN and --baseline, durations for all.")
    ] = None,
    split: Annotated[str, Option(help="Split to evaluate.")] = "test",
    train_split: Annotated[str | None, Option(help="Split that blind floors are fitted on (train, …).")] = None,
    predictions: Annotated[Path | None, Option(help="File to score; no model, no torch.")] = None,
    baseline: Annotated[bool, Option("--baseline", help="Score the tower's similarity, without training.")] = False,
    floors_only: Annotated[bool, Option("--floors-only", help="Score blind constants only.")] = False,
    task: Annotated[str | None, Option(help="mr, tal, as or hd (with --predictions).")] = None,
    protocol: Annotated[str | None, Option(help="Official variant of the metric.")] = None,
    strict: Annotated[bool, Option("--strict", help="Refuse to score bad predictions.")] = False,
    intervals: Annotated[bool, Option("--intervals", help="95 % bootstrap intervals over videos.")] = False,
    seed: Annotated[int, Option(min=0, help="Seed of the intervals' draws.")] = 0,
    external_labels: Annotated[
        bool, Option("--external-labels", help="State that labels of another model were used.")
    ] = False,
    without: Annotated[
        list[Path] | None, Option(help="List of videos to leave out of annotations and predictions.")
    ] = None,
    only: Annotated[list[Path] | None, Option(help="List of the only videos to score.")] = None,
    export: Annotated[Path | None, Option(help="Write the predictions: .json, .jsonl, .zip or .csv.")] = None,
    analyse: Annotated[bool, Option("--analyse", help="Kinds of false positives, recall; plots into --out.")] = False,
    zero_shot: Annotated[Path | None, Option(help="Folder of class splits: score the unseen classes of each.")] = None,
    vocabulary: Annotated[
        list[Path] | None, Option(help="Names the tower was pretrained on (with --zero-shot).")
    ] = None,
    control: Annotated[Path | None, Option(help="Predictions for nonsense class names (with --zero-shot).")] = None,
    out: Annotated[Path | None, Option(help="Folder (or metrics.json) to write.")] = None,
    device: Annotated[str, Option(help="auto (CUDA if there is one), cpu, cuda:1, …")] = "auto",
) -> None:
    """Metrics of a split in metrics.json and as a table, next to what blind constants score.

    Example: unloc eval --predictions predictions.json --manifest anet.jsonl --task tal --split validation --intervals
    """
    if (run is not None) + (predictions is not None) + baseline + floors_only != 1:
        raise InputError("unloc eval: give one of RUN, --predictions FILE or --baseline, or --floors-only")
    if cache is None and (run is not None or baseline):
        raise InputError("unloc eval: --cache is needed with RUN and with --baseline")
    if manifest is None:
        raise InputError("unloc eval: --manifest is needed: it holds the annotations")
    if export is not None and (floors_only or zero_shot is not None):
        raise InputError("unloc eval: --export writes predictions; with --floors-only and --zero-shot there are none")
    if predictions is None and (zero_shot is not None or vocabulary or control):
        raise InputError("unloc eval --zero-shot: it scores --predictions of --task tal")
    from unloc.evaluation.job import Evaluation, evaluate_file, evaluate_floors

    if run is not None or baseline:
        from unloc.inference.evaluate_run import evaluate_baseline, evaluate_run, run_folder
    if run is not None:
        out = out or run_folder(run) / "eval" / split
    evaluation = Evaluation(
        manifest_path=manifest,
        split=split,
        task=task,
        cache=cache,
        train_split=train_split,
        protocol=protocol,
        interval_seed=seed if intervals else None,
        external_labels=external_labels,
        analyse=analyse,
        without=without or [],
        only=only or [],
        out=out,
        export=export,
        inputs=[path for path in (predictions, control, *(vocabulary or [])) if path],
    )
    if predictions is not None:
        more = {"class_splits": zero_shot, "vocabularies": vocabulary, "control": control}
        report = evaluate_file(evaluation, predictions, strict=strict, **more)
    elif floors_only:
        report = evaluate_floors(evaluation)
    elif baseline:
        report = evaluate_baseline(evaluation)
    else:
        with progress("predicting", "examples") as on_progress:
            report = evaluate_run(evaluation, run, device, on_progress)
    for message in evaluation.warnings:
        typer.echo(f"note: {message}", err=True)
    for message in evaluation.messages:
        typer.echo(message)
    if report is not None:
        print_report(report)
