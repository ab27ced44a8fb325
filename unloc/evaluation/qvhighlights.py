"""QVHighlights' own moment metrics (moment_detr's evaluation), also as Lighthouse applies them to other datasets.

mAP: the first ten entries of a list, then by score (of equal scores the earlier first), matched as for detection; per
query, then the mean. R1: the first entry, scores ignored. For a length range only the ground truth within it is kept
and queries without any are left out; predictions are not filtered.
"""

from collections.abc import Sequence

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.evaluation.matching import match
from unloc.evaluation.retrieval import PROTOCOLS, align, hull_ratio, truth_of, within
from unloc.evaluation.rows import QueryValues
from unloc.predictions.records import MomentPrediction

RANGES = {"full": (-np.inf, np.inf), "short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
LIGHTHOUSE_RANGES = {"full": PROTOCOLS["lighthouse"].lengths}
THRESHOLDS = np.round(np.linspace(0.5, 0.95, 10), 2)
MAX_WINDOWS = 10


def qvhighlights_moments(predictions: Sequence[MomentPrediction], manifest: Manifest) -> dict[str, float]:
    """MR-{full,short,middle,long}-{mAP, mAP@0.5 … 0.95, R1@0.5 … 0.95} in percent, unrounded."""
    return qvhighlights_values(predictions, manifest).means()


def qvhighlights_values(
    predictions: Sequence[MomentPrediction],
    manifest: Manifest,
    ranges: dict[str, tuple[float, float]] = RANGES,
    *,
    clamp: bool = False,
) -> QueryValues:
    """The same for every query; a query without prediction is a miss."""
    truth, aligned = truth_of(manifest, clamp=clamp), align(predictions, manifest)
    owner, windows = _first_entries(aligned)
    values: dict[str, np.ndarray] = {}
    for name, (shortest, longest) in ranges.items():
        kept = [within(one, shortest, longest) for one in truth]
        answered = np.array([len(one) > 0 for one in kept], dtype=bool)[:, None]
        precision = np.where(answered, _query_precision(owner, windows, kept), np.nan)
        first = [_first_ratio(item, one) for item, one in zip(aligned, kept, strict=True)]
        reached = np.where(answered, np.asarray(first)[:, None] >= THRESHOLDS, np.nan)
        values[f"MR-{name}-mAP"] = precision.mean(axis=1)
        for kind, table in (("mAP", precision), ("R1", reached)):
            columns = zip(THRESHOLDS, table.T, strict=True)
            values |= {f"MR-{name}-{kind}@{threshold}": column for threshold, column in columns}
    return QueryValues(list(manifest.queries["video_id"]), values)


def _first_entries(aligned: Sequence[MomentPrediction | None]) -> tuple[np.ndarray, np.ndarray]:
    """(query of each entry, windows (n, 2)) of the first entries of all lists, by query and then by falling score."""
    lists = [np.zeros((0, 3)) if item is None else item.windows[:MAX_WINDOWS] for item in aligned]
    entries = np.concatenate([*lists, np.zeros((0, 3))])
    owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    order = np.lexsort((-entries[:, 2], owner))
    return owner[order], entries[order, :2]


def _query_precision(owner: np.ndarray, windows: np.ndarray, truth: Sequence[np.ndarray]) -> np.ndarray:
    """(queries, thresholds) interpolated average precision of every query's entries."""
    counts = np.array([len(one) for one in truth], dtype=np.int64)
    hits = match(
        owner, windows, np.repeat(np.arange(len(truth)), counts), np.concatenate([*truth, np.zeros((0, 2))]), THRESHOLDS
    )
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    padded = np.zeros((len(truth), MAX_WINDOWS, len(THRESHOLDS)))
    padded[owner, place] = hits
    precision = np.cumsum(padded, axis=1) / np.arange(1, MAX_WINDOWS + 1)[:, None]
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (precision * padded).sum(axis=1) / np.maximum(counts, 1)[:, None]


def _first_ratio(prediction: MomentPrediction | None, truth: np.ndarray) -> float:
    if prediction is None or not len(prediction.windows) or not len(truth):
        return 0.0
    return float(np.fmax.reduce(hull_ratio(prediction.windows[0, :2][None], truth)))


def official_report(metrics: dict[str, float]) -> dict[str, dict]:
    """The metrics as moment_detr prints them: percent rounded to two decimals, in its keys and order."""
    rounded = {key: float(f"{value:.2f}") for key, value in metrics.items() if key.startswith(("MR-", "HL-"))}
    brief = [f"MR-full-{key}" for key in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")]
    brief += [f"MR-{name}-mAP" for name in ("long", "middle", "short")]
    levels = [f"HL-min-{level}" for level in ("Fair", "Good", "VeryGood")]
    brief += [f"{level}-{key}" for level in levels for key in ("mAP", "Hit1")]
    report: dict[str, dict] = {"brief": {key: rounded[key] for key in brief if key in rounded}}
    for level in levels:
        if f"{level}-mAP" in rounded:
            report[level] = {"HL-mAP": rounded[f"{level}-mAP"], "HL-Hit1": rounded[f"{level}-Hit1"]}
    for name in RANGES:
        if f"MR-{name}-mAP" in rounded:
            average = rounded[f"MR-{name}-mAP"]
            at = {kind: {str(t): rounded[f"MR-{name}-{kind}@{t}"] for t in THRESHOLDS} for kind in ("mAP", "R1")}
            report[name] = {"MR-mAP": at["mAP"] | {"average": average}, "MR-R1": at["R1"]}
    return report
