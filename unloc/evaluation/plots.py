"""Plots of the error analysis as SVG files, for reports and papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unloc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "true": "#2a7f62",
    "duplicate": "#e0a13c",
    "wrong label": "#8e5ea2",
    "poor boundary": "#3c78b4",
    "confused": "#c76fa0",
    "background": "#9aa0a6",
}
TITLES = {
    "length_seconds": "length in seconds",
    "share_of_video": "share of the video",
    "position_of_middle": "position of the middle",
    "instances_in_video": "segments of the label in the video",
}


def write_plots(analysis: dict, folder: Path) -> list[Path]:
    """Three SVG files below the folder. Raises InputError if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure  # not pyplot, which needs a display
    except ModuleNotFoundError:
        raise InputError("--analyse draws with matplotlib, which is not installed: pip install matplotlib") from None
    folder.mkdir(parents=True, exist_ok=True)
    # The same analysis gives the same bytes: no date, fixed ids; text is kept as text.
    with matplotlib.rc_context({"svg.hashsalt": "unloc", "svg.fonttype": "none", "font.size": 9}):
        for name, (draw, rows, size) in PLOTS.items():
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots(rows, rows, squeeze=False).ravel()
            for axis in axes:
                axis.spines[["top", "right"]].set_visible(False)
            draw(figure, axes, analysis)
            figure.savefig(folder / name, format="svg", metadata={"Date": None})
    return [folder / name for name in PLOTS]


def _draw_kinds(figure: "Figure", axes: "Sequence[Axes]", analysis: dict) -> None:
    """Shares of the kinds among the G best detections of each label, the next G, and so on."""
    (axis,), rows = axes, analysis["counts_by_rank"]
    totals = [max(1, sum(row.values())) for row in rows]
    bottom = [0.0] * len(rows)
    for kind, colour in COLOURS.items():
        shares = [100.0 * row[kind] / total for row, total in zip(rows, totals, strict=True)]
        axis.bar(range(1, len(rows) + 1), shares, bottom=bottom, color=colour, label=kind, width=0.85)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    axis.set(xlabel="rank, in multiples of G segments of the label", ylabel="% of detections", ylim=(0, 100))
    axis.set_xticks(range(1, len(rows) + 1))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_gains(figure: "Figure", axes: "Sequence[Axes]", analysis: dict) -> None:
    """Gain of mAP@0.50 without each kind of false positive."""
    (axis,), gains = axes, analysis["gain_without"]
    axis.barh(list(gains), list(gains.values()), color=[COLOURS[kind] for kind in gains])
    axis.invert_yaxis()
    axis.set(xlabel="points of mAP@0.50 gained without them")


def _draw_recall(figure: "Figure", axes: "Sequence[Axes]", analysis: dict) -> None:
    """Recall at IoU 0.5 in the bins of every property, with the number of segments in each."""
    for axis, (name, rows) in zip(axes, analysis["recall"].items(), strict=True):
        places = range(len(rows))
        shares = np.nan_to_num([(row["recall"], row["recall_at_1x"]) for row in rows]).T  # NaN: bin without segments
        found = axis.bar(places, shares[0], color="#c9d6e2")
        at_once = axis.bar(places, shares[1], color="#3c78b4", width=0.5)
        axis.set_xticks(places, [f"≥ {row['from']:g}\n({row['segments']})" for row in rows], fontsize=7)
        axis.set(title=TITLES[name], ylim=(0, 100), ylabel="% found")
    labels = ("of the 10·n best", "of the n best (n segments of the label in the video; in brackets: segments)")
    figure.legend([found, at_once], labels, loc="outside upper center", ncols=2, frameon=False)


PLOTS = {
    "false_positives.svg": (_draw_kinds, 1, (6.4, 3.2)),
    "gains.svg": (_draw_gains, 1, (5.6, 2.6)),
    "recall.svg": (_draw_recall, 2, (8.4, 5.6)),
}
"""File name: how it is drawn, rows and columns, size in inches."""
