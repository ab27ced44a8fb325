"""The metrics of a report as a table: printed, as csv in full, or for papers as LaTeX with one decimal."""

import pandas as pd

SHOWN_OFFICIAL = ("-mAP", "-full-mAP@0.5", "-full-mAP@0.75", "-full-R1@0.5", "-full-R1@0.7")  # of QVHighlights' 84


def is_shown(metric: str) -> bool:
    """Whether a metric is in the tables that people read; files have all."""
    return not metric.startswith("MR-") or metric.endswith(SHOWN_OFFICIAL)


def metric_table(report: dict) -> pd.DataFrame:
    """A row a metric, in percent: what was scored, every floor, and the ends of the interval where there is one."""
    columns = {"ours": report["metrics"]} if "metrics" in report else {}
    table = pd.DataFrame(columns | report.get("floors", {}))
    for place, name in enumerate(("low", "high") if report.get("intervals") else ()):
        table[name] = pd.Series({metric: ends[place] for metric, ends in report["intervals"].items()})
    return table.rename_axis("metric")


def latex_table(report: dict) -> str:
    """A tabular of booktabs, with the protocol in a comment."""
    source = f"% {report['manifest']} {report['split']}, {report['task']} by protocol {report['protocol']}, percent"
    table = metric_table(report).reset_index()
    return f"{source}\n{table.to_latex(index=False, escape=True, float_format='%.1f', na_rep='--')}"
