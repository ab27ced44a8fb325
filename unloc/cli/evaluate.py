"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.cli.progress import progress
from unloc.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Option = typer.Option


@app.command("eval")
def evaluate_command(
    run: Annotated[Path | None, typer.Argument(help="Run, model folder or Hub name; none with --predictions.")] = None,
    manifest: Annotated[Path | None, Option("--manifest", "-m", help="Manifest with the annotations.")] = None,
    cache: Annotated[Path | None, Option("--cache", "-c", help="Tokens for a model, durations for all.")] = None,
    split: Annotated[str, Option(help="Split to evaluate.")] = "test",
    train_split: Annotated[str | None, Option(help="Split that blind floors are fitted on (train, …).")] = None,
    predictions: Annotated[Path | None, Option(help="File to score; no model, no torch.")] = None,
    baseline: Annotated[bool, Option("--baseline", help="Score the tower's similarity, without training.")] = False,
    floors_only: Annotated[bool, Option("--floors-only", help="Score blind constants only.")] = False,
    task: Annotated[str | None, Option(help="mr, tal, as, hd or cls (--predictions, RUN of several tasks).")] = None,
    protocol: Annotated[str | None, Option(help="Official variant of the metric.")] = None,
    rejection: Annotated[bool, Option("--rejection", help="Score null queries too: not in this video.")] = False,
    strict: Annotated[bool, Option("--strict", help="Refuse to score bad predictions.")] = False,
    intervals: Annotated[bool, Option("--intervals", help="95 % bootstrap intervals over videos.")] = False,
    seed: Annotated[int, Option(min=0, help="Seed of the intervals' draws.")] = 0,
    external_labels: Annotated[bool, Option("--external-labels", help="Labels of another model were used.")] = False,
    without: Annotated[list[Path] | None, Option(help="List of videos to leave out, also of predictions.")] = None,
    only: Annotated[list[Path] | None, Option(help="List of the only videos to score.")] = None,
    export: Annotated[Path | None, Option(help="Write the predictions: .json, .jsonl, .zip or .csv.")] = None,
    analyse: Annotated[bool, Option("--analyse", help="Kinds of false positives, recall; plots into --out.")] = False,
    zero_shot: Annotated[Path | None, Option(help="Folder of class splits: score the unseen classes of each.")] = None,
    vocabulary: Annotated[list[Path] | None, Option(help="Names the tower was pretrained on (--zero-shot).")] = None,
    control: Annotated[Path | None, Option(help="Predictions for nonsense class names (with --zero-shot).")] = None,
    out: Annotated[Path | None, Option(help="Folder (or metrics.json) to write.")] = None,
    csv: Annotated[Path | None, Option(help="Write the table of metrics as csv.")] = None,
    latex: Annotated[Path | None, Option(help="Write the table of metrics as LaTeX (booktabs).")] = None,
    device: Annotated[str, Option(help="auto (CUDA if there is one), cpu, cuda:1, …")] = "auto",
) -> None:
    """Metrics of a split in metrics.json and as a table, next to what blind constants score.

    Example: unloc eval --predictions predictions.json --manifest anet.jsonl --task tal --split validation --intervals
    """
    task = task or ("mr" if rejection else None)
    given = {name: value for name, value in locals().items() if value is not None}
    _check_options({name for name, value in given.items() if value}, task)
    from unloc.evaluation.job import Evaluation, evaluate_file, evaluate_floors

    if run or baseline:
        from unloc.inference.evaluate_run import evaluate_baseline, evaluate_run
    options = {field.name: given[field.name] for field in fields(Evaluation) if field.name in given}
    options |= {"manifest_path": manifest, "interval_seed": seed if intervals else None}
    options["inputs"] = [path for path in (predictions, control, *(vocabulary or [])) if path]
    evaluation = Evaluation(**options)
    if predictions:
        report = evaluate_file(evaluation, predictions, strict, zero_shot, vocabulary, control)
    elif run:
        with progress("predicting", "examples") as on_progress:
            report = evaluate_run(evaluation, run, device, on_progress)
    else:
        report = (evaluate_baseline if baseline else evaluate_floors)(evaluation)
    print_report(report, evaluation.messages, evaluation.warnings)


def _check_options(given: set[str], task: str | None) -> None:
    """Raise InputError if options are missing or do not go together."""
    source, is_zero_shot = given & {"run", "predictions", "baseline", "floors_only"}, "zero_shot" in given
    mistakes = {
        "give one of RUN, --predictions FILE or --baseline, or --floors-only": len(source) != 1,
        "--cache is needed with RUN and with --baseline": source & {"run", "baseline"} and "cache" not in given,
        "--manifest is needed: it holds the annotations": "manifest" not in given,
        "--export needs RUN, --baseline or --predictions without --zero-shot": (
            "export" in given and (is_zero_shot or "floors_only" in source)
        ),
        "--task is needed without RUN: mr, tal, as, hd, cls": task is None and source & {"predictions", "floors_only"},
        "--zero-shot scores --predictions of --task tal": is_zero_shot and (source != {"predictions"} or task != "tal"),
        "--rejection goes without --analyse and --zero-shot": (
            "rejection" in given and (is_zero_shot or "analyse" in given)
        ),
        "--vocabulary and --control belong to --zero-shot": given & {"vocabulary", "control"} and not is_zero_shot,
    }
    for message, is_made in mistakes.items():
        if is_made:
            raise InputError(f"unloc eval: {message}")


def print_report(report: dict | None, messages: list[str], warnings: list[str]) -> None:
    """What happened, and the metrics next to every blind floor with what is needed to compare them."""
    for message in warnings:
        typer.echo(f"note: {message}", err=True)
    for message in messages:
        typer.echo(message)
    if report is None:
        return
    import pandas as pd

    from unloc.evaluation.tables import metric_table

    typer.echo(f"{report['manifest']} {report['split']}: {report['task']} by protocol {report['protocol']}")
    if recipe := report.get("recipe"):
        towers, tokens = recipe["towers"], recipe["tokens"]
        weights = f"{tokens['tower.name'] or 'another project'} {tokens['tower.pretrained'] or ''}".rstrip()
        line = f"  recipe {recipe['name']}: image {towers['image']}, text {towers['text']}, tokens of {weights}"
        if recipe["checkpoint_selected_on"] == report["split"]:
            line += f"; {report['split']} selected the checkpoint, so these figures are too optimistic"
        typer.echo(line)
    if report["source"]:
        typer.echo(f"  annotations: {report['source']}")
    typer.echo(f"  ties: {report['tie_rule']}")
    table = metric_table(report)
    if coverage := report.get("coverage"):
        line = f"  {coverage['videos_predicted']} of {coverage['videos_annotated']} annotated videos have predictions"
        if "queries_annotated" in coverage:
            line += f", {coverage['queries_predicted']} of {coverage['queries_annotated']} queries"
        if "existence_stated" in coverage:
            line += f"; {coverage['existence_stated']} state an existence score, of others the best window's is used"
        if "metrics_without_missing" in coverage:
            line += "; `answered` leaves out the others"
            table.insert(1, "answered", pd.Series(coverage["metrics_without_missing"]))
        stated = f", stated {report['external_labels_stated']}" if "external_labels_stated" in report else ""
        typer.echo(f"{line}\n  external labels: {'used' if report['external_labels'] else 'none'}{stated}")
    if (seen := report.get("classes_seen_in_training")) is not None:
        line = f"  zero-shot: {len(seen)} of the manifest's classes were seen in training {', '.join(seen)}"
        typer.echo(line.rstrip())
    _print_table(table)
    for share, found in report.get("zero_shot", {}).items():
        typer.echo(f"zero-shot {share}: mean and standard deviation over {found['num_splits']} splits of classes")
        control = {"nonsense": found["nonsense_control"]["mean"]} if "nonsense_control" in found else {}
        _print_table(pd.DataFrame({"mean": found["mean"], "std": found["std"]} | control | found.get("floors", {})))
        typer.echo(f"  leaks: {found['leak_check']}")
        for title, overlap in found.get("unseen_names_in_vocabulary", {}).items():
            counts = f"{len(overlap['same'])} unseen names, {len(overlap['within'])} more in part"
            shares = "{mean:.1f} % of a split's unseen names, {most:.1f} % at most"
            typer.echo(f"  in {title}: {counts}; {shares.format(**overlap['percent_same_per_split'])}")
    if "analysis" in report:
        _print_analysis(report["analysis"])


def _print_table(table: "pd.DataFrame") -> None:
    from unloc.evaluation.tables import is_shown

    shown = table.loc[[name for name in table.index if is_shown(name)]]
    shown = shown.rename(columns={"low": "95 % of draws: from", "high": "to"})
    typer.echo(shown.to_string(float_format="{:.2f}".format, na_rep="nan"))


def _print_analysis(analysis: dict) -> None:
    counts, gains = analysis["counts"], analysis["gain_without"]
    typer.echo(f"detections by kind, {analysis['counted']}; mAP@0.50 gained without the kind")
    for kind, number in counts.items():
        gain = f"{gains[kind]:+9.2f}" if kind in gains else ""
        typer.echo(f"  {kind:16}{number:9d} {100 * number / max(1, sum(counts.values())):6.1f} %{gain}")
    for name, rows in analysis["recall"].items():
        bins = []
        for row in rows:
            bounds = f"{row['from']:g}-{row['below']:g}".replace("-inf", "+")
            bins.append(f"[{bounds}] " + (f"{row['recall']:.1f} % of {row['segments']}" if row["segments"] else "none"))
        typer.echo(f"recall by {name.replace('_', ' ')}: {', '.join(bins)}")
