"""The report of `unloc eval` as a table on the screen."""

import math

import typer

SHOWN_OFFICIAL = ("-mAP", "-full-mAP@0.5", "-full-mAP@0.75", "-full-R1@0.5", "-full-R1@0.7")  # of QVHighlights' 84


def print_report(report: dict) -> None:
    """The metrics next to every blind floor, with what is needed to compare them."""
    typer.echo(f"{report['manifest']} {report['split']}: {report['task']} by protocol {report['protocol']}")
    if "recipe" in report:
        typer.echo(f"  {_recipe_line(report['recipe'], report['split'])}")
    if report["source"]:
        typer.echo(f"  annotations: {report['source']}")
    typer.echo(f"  ties: {report['tie_rule']}")
    for name, (low, high) in report.get("tie_spans", {}).items():
        typer.echo(f"    {name} would be between {low:.2f} and {high:.2f} in other orders of equal scores")
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


def _recipe_line(recipe: dict, split: str) -> str:
    towers, tokens = recipe["towers"], recipe["tokens"]
    line = f"recipe {recipe['name']}: image {towers['image']}, text {towers['text']}, tokens of "
    line += f"{tokens['tower.name'] or 'another project'} {tokens['tower.pretrained'] or ''}".rstrip()
    if recipe["checkpoint_selected_on"] == split:
        line += f"; {split} selected the checkpoint, so these figures are too optimistic"
    return line


def _print_coverage(report: dict) -> None:
    coverage, external = report["coverage"], "used" if report["external_labels"] else "none"
    line = f"{coverage['videos_predicted']} of {coverage['videos_annotated']} annotated videos have predictions"
    if "queries_annotated" in coverage:
        line += f", {coverage['queries_predicted']} of {coverage['queries_annotated']} queries"
    if "metrics_without_missing" in coverage:
        line += "; `answered` leaves out the others"
    stated = f", stated {report['external_labels_stated']}" if "external_labels_stated" in report else ""
    typer.echo(f"  {line}\n  external labels: {external}{stated}")


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
    """Zero-shot: mean and standard deviation over the splits, the control, and unseen names known from pretraining."""
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
        typer.echo(f"recall by {name.replace('_', ' ')}: " + ", ".join(map(_recall_bin, rows)))


def _recall_bin(row: dict) -> str:
    bounds = f"{row['from']:g}+" if math.isinf(row["below"]) else f"{row['from']:g}-{row['below']:g}"
    return f"[{bounds}] {row['recall']:.1f} % of {row['segments']}" if row["segments"] else f"[{bounds}] none"
