"""The curves of a run as a picture: losses, learning rates and validation metrics over steps."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from unloc.files import replacing

MOST_METRICS = 8  # lines that can be told apart


def draw_curves(run: Path) -> None:
    """Write RUN/curves.png from the rows of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    losses = [key for key in ("loss", "relevance", "box", "saliency") if train and key in train[0]]
    rates = [key for key in ("lr", "tower_lr") if train and key in train[0]]
    metrics = [key for key in (val[0] if val else ()) if key not in ("kind", "step")][:MOST_METRICS]
    figure = Figure(figsize=(15, 4), dpi=80, layout="constrained")
    panels = zip(figure.subplots(1, 3), (train, train, val), (losses, rates, metrics), strict=True)
    for (axes, of, keys), title in zip(panels, ("training loss", "learning rate", "validation"), strict=True):
        for key in keys:
            values = [row[key] if row.get(key) is not None else float("nan") for row in of]
            axes.plot([row["step"] for row in of], values, label=key, marker="." if len(of) < 50 else "")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if keys:
            axes.legend(fontsize="small")
    with replacing(run / "curves.png", sync=False) as part:
        figure.savefig(part, format="png")
