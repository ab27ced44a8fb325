"""The curves of a training run, from the rows of its metrics.jsonl."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MOST_METRICS = 8  # lines of a picture that can be told apart
Line = tuple[list[int], list[float | None]]  # steps, and a value at each


def read_rows(run: Path) -> list[dict]:
    """The rows of RUN/metrics.jsonl; half a line, which a killed run leaves, is skipped."""
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def training_curves(rows: Sequence[dict]) -> dict[str, dict[str, Line]]:
    """Losses, learning rates and validation metrics by name, under the titles of three panels."""
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    first = train[0] if train else {}
    losses = [key for key in ("loss", "relevance", "box", "saliency") if key in first]
    losses += sorted({key for row in train for key in row if key.endswith("/loss")})  # of several tasks
    rates = [key for key in ("lr", "tower_lr") if key in first]
    metrics = [key for key in (val[0] if val else ()) if key not in ("kind", "step")][:MOST_METRICS]
    panels = {"training loss": (train, losses), "learning rate": (train, rates), "validation": (val, metrics)}
    found = {}
    for title, (of, keys) in panels.items():
        having = {key: [row for row in of if key in row] for key in keys}
        found[title] = {k: ([row["step"] for row in own], [row[k] for row in own]) for k, own in having.items()}
    return found
