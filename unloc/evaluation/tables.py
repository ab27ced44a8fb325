"""The metrics of a report as a table for papers: csv in full, LaTeX with one decimal."""

import math
import re

import pandas as pd


def metric_table(report: dict) -> pd.DataFrame:
    """A row a metric, in percent: what was scored, every floor, and the ends of the interval where there is one."""
    columns = {"ours": report["metrics"]} if "metrics" in report else {}
    table = pd.DataFrame(columns | report.get("floors", {}))
    for place, name in enumerate(("low", "high") if report.get("intervals") else ()):
        table[name] = pd.Series({metric: ends[place] for metric, ends in report["intervals"].items()})
    return table.rename_axis("metric")


def latex_table(report: dict) -> str:
    """A tabular of booktabs, with the protocol in a comment."""
    table, mark = metric_table(report), " & "
    source = f"% {report['manifest']} {report['split']}, {report['task']} by protocol {report['protocol']}, percent"
    rows = [mark.join(map(_escaped, ["metric", *table.columns])) + r" \\", r"\midrule"]
    for metric, values in table.iterrows():
        numbers = ["--" if math.isnan(value) else f"{value:.1f}" for value in values]
        rows.append(mark.join([_escaped(metric), *numbers]) + r" \\")
    head = [source, rf"\begin{{tabular}}{{l{'r' * table.shape[1]}}}", r"\toprule"]
    return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
