"""What `unloc eval` leaves behind: metrics.json, plots beside it, and a table on the screen."""

import json
import math
from pathlib import Path

import typer

from unloc.cli.evaluate_plots import PLOTS, write_plots
from unloc.errors import InputError
from unloc.files import write_file

SHOWN_OFFICIAL = ("-mAP", "-full-mAP@0.5", "-full-mAP@0.75", "-full-R1@0.5", "-full-R1@0.7")  # of QVHighlights' 84


def write_report(report: dict, out: Path) -> None:
    """metrics.json, or the file that `out` names, and the plots of an analysis beside it.

    The file is written whole or not at all; an undefined figure and the open end of a bin are null.
    Raises InputError where it cannot be written.
    """
    path = report_path(out)
    try:
        if "analysis" in report:
            plots = write_plots(report["analysis"], path.parent / "analysis")
            report["analysis"]["plots"] = [str(plot.relative_to(path.parent)) for plot in plots]
        text = json.dumps(_without_nan(report), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(path, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}") from None


def report_path(out: Path) -> Path:
    """The file that --out names, or metrics.json in the folder that it names."""
    return out if out.suffix == ".json" else out / "metrics.json"


def plot_paths(out: Path) -> list[Path]:
    """The plots of an analysis beside the report."""
    return [report_path(out).parent / "analysis" / name for name in PLOTS]


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(report: dict) -> None:
    """The metrics beside every blind floor, aligned, with what must be known to compare them."""
    typer.echo(f"{report['manifest']} {report['split']}: {report['task']} by protocol {report['protocol']}")
    if "recipe" in report:
        typer.echo(f"  {_recipe_words(report['recipe'], report['split'])}")
    if report["source"]:
        typer.echo(f"  annotations: {report['source']}")
    typer.echo(f"  ties: {report['tie_rule']}")
    for name, (low, high) in report.get("tie_spans", {}).items():
        typer.echo(f"    {name} would lie between {low:.2f} and {high:.2f} in other orders of equal scores")
    if "coverage" in report:
        _print_coverage(report)
    if "classes_seen_in_training" in report:
        seen = report["classes_seen_in_training"]
        typer.echo(
            f"  zero-shot: {len(seen)} of the manifest's classes were seen in training {', '.join(seen)}".rstrip()
        )
    columns = {"ours": report["metrics"]} if "metrics" in report else {}
    missing = report.get("coverage", {}).get("metrics_without_missing")
    columns |= {"answered": missing} if missing else {}
    _print_table(columns | report.get("floors", {}), report.get("intervals", {}))
    for share, found in report.get("zero_shot", {}).items():
        _print_share(share, found)
    if "analysis" in report:
        _print_analysis(report["analysis"])


def _recipe_words(recipe: dict, split: str) -> str:
    towers, tokens = recipe["towers"], recipe["tokens"]
    words = f"recipe {recipe['name']}: image {towers['image']}, text {towers['text']}, tokens of "
    words += f"{tokens['tower.name'] or 'another project'} {tokens['tower.pretrained'] or ''}".rstrip()
    if recipe["checkpoint_selected_on"] == split:
        words += f"; {split} selected the checkpoint, so that these figures are too good"
    return words


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
    for key in next(iter(columns.values()), {}):
        if key.startswith("MR-") and not key.endswith(SHOWN_OFFICIAL):
            continue
        cells = "".join(
            f"{values.get(key, math.nan):{width}.2f}" for values, width in zip(columns.values(), widths, strict=True)
        )
        ends = "  {:.2f} to {:.2f}".format(*intervals[key]) if key in intervals else ""
        typer.echo(f"{key:26}{cells}{ends}")


def _print_share(share: str, found: dict) -> None:
    """Zero-shot: mean and standard deviation over the splits, the control, and the names that are not unseen."""
    typer.echo(f"zero-shot {share}: mean and standard deviation over {found['num_splits']} splits of classes")
    columns = {"mean": found["mean"], "std": found["std"]}
    if "nonsense_control" in found:
        columns["nonsense"] = found["nonsense_control"]["mean"]
    _print_table(columns | found.get("floors", {}), {})
    typer.echo(f"  leaks: {found['leak_check']}")
    for title, overlap in found.get("unseen_names_in_vocabulary", {}).items():
        shares = overlap["percent_same_per_split"]
        typer.echo(
            f"  in {title}: {len(overlap['same'])} unseen names, {len(overlap['within'])} more in part; "
            f"{shares['mean']:.1f} % of a split's unseen names, {shares['most']:.1f} % at most"
        )


def _print_analysis(analysis: dict) -> None:
    counts = analysis["counts"]
    typer.echo(f"detections by kind, {analysis['counted']}; mAP@0.50 gained without the kind")
    for kind, number in counts.items():
        gain = f"{analysis['gain_without'][kind]:+9.2f}" if kind in analysis["gain_without"] else ""
        typer.echo(f"  {kind:16}{number:9d} {100 * number / max(1, sum(counts.values())):6.1f} %{gain}")
    for name, rows in analysis["recall"].items():
        typer.echo(f"recall by {name.replace('_', ' ')}: " + ", ".join(map(_bin_words, rows)))


def _bin_words(row: dict) -> str:
    bounds = f"{row['from']:g}+" if math.isinf(row["below"]) else f"{row['from']:g}-{row['below']:g}"
    return f"[{bounds}] {row['recall']:.1f} % of {row['segments']}" if row["segments"] else f"[{bounds}] none"
