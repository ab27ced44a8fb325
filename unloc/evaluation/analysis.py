"""Error analysis: what kind of mistake each false positive is, what each kind costs, and which segments are missed.

After DETAD (Alwassel et al., ECCV 2018, §3–5). A false positive is, at IoU 0.5, the first that fits of
duplicate        reaches a segment of its label that a better one has taken
wrong label      reaches a segment of another label
poor boundary    overlaps a segment of its label by 0.1 at least
confused         overlaps a segment of another label by 0.1 at least
background       overlaps nothing by 0.1
Counted are the 10·G best of every label, G its number of segments. In moment retrieval each query is a label of its
own; in action segmentation runs of equal labels are the segments.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from unloc.annotations.durations import durations_of
from unloc.annotations.schema import INSTANCE_COLUMNS, Manifest
from unloc.evaluation.detection import found_at_multiple
from unloc.evaluation.matching import Matches, interpolated_precision, match_detections, overlap_over_union
from unloc.evaluation.retrieval import align, truth_of
from unloc.evaluation.runs import runs
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table

REACHED, TOUCHED = 0.5, 0.1
KINDS = ("true", "duplicate", "wrong label", "poor boundary", "confused", "background")
MULTIPLES = 10
LENGTH_EDGES = (0.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, np.inf)
SHARE_EDGES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, np.inf)
POSITION_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, np.inf)
COUNT_EDGES = (1.0, 2.0, 3.0, 6.0, 11.0, np.inf)


def analyse(task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest) -> dict:
    """The analysis as it stands in metrics.json, for a (selected) manifest."""
    detections, instances = as_detections(task, predictions, manifest)
    matches = match_detections(detections, instances, np.array([REACHED]))
    kinds, rank = kinds_of(matches), ranks_within_class(matches)
    counted = rank < MULTIPLES
    return {
        "iou": REACHED,
        "background_below": TOUCHED,
        "counted": f"the {MULTIPLES}·G best of every label, G its number of segments",
        "num_segments": len(instances),
        "unknown_labels": len(detections) - len(kinds),
        "counts": count_kinds(kinds[counted]),
        "counts_by_rank": [count_kinds(kinds[rank == multiple]) for multiple in range(MULTIPLES)],
        "gain_without": gains(matches, kinds),
        "recall": recall_by_property(matches, durations_of(manifest)),
    }


# -- every task as labelled segments --------------------------------------------------------------------------------


def as_detections(
    task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(detections, instances) with a label each: the class, or the number of the query."""
    if task == "tal":
        return predictions, manifest.instances
    if task == "as":
        durations = durations_of(manifest)
        rows = (row for item in predictions for row in run_rows(item, durations.get(item.video_id, 0.0)))
        return detections_table(rows), manifest.instances
    return query_detections(predictions, manifest), query_instances(manifest)


def run_rows(item: FramePrediction, duration_seconds: float) -> list[tuple[str, str, float, float, float]]:
    """A row for every run of equal labels that is not background; all score alike."""
    names = list(dict.fromkeys(name for name in item.labels if name is not None))
    code = {None: -1} | {name: number for number, name in enumerate(names)}
    found = runs(np.array([code[name] for name in item.labels], dtype=np.int64))
    edges = item.edges(duration_seconds)
    return [(item.video_id, names[label], edges[first], edges[after], 1.0) for label, first, after in found]


def query_detections(predictions: Sequence[MomentPrediction], manifest: Manifest) -> pd.DataFrame:
    """The windows of every query, labelled with its number; of equal scores the first of the list stands last."""
    rows = []
    for number, item in enumerate(align(predictions, manifest)):
        windows = () if item is None else item.windows[::-1]
        rows += [(item.video_id, str(number), *window) for window in windows]
    return detections_table(rows)


def query_instances(manifest: Manifest) -> pd.DataFrame:
    """The annotated windows of every query, labelled with its number."""
    videos, truth = list(manifest.queries["video_id"]), truth_of(manifest, clamp=True)
    rows = [
        {"video_id": video_id, "label": str(number), "start_seconds": start, "end_seconds": end}
        for number, (video_id, windows) in enumerate(zip(videos, truth, strict=True))
        for start, end in windows
    ]
    return pd.DataFrame(rows, columns=INSTANCE_COLUMNS)


# -- false positives ------------------------------------------------------------------------------------------------


def kinds_of(matches: Matches) -> np.ndarray:
    """(n,) index into KINDS of every detection."""
    same, other = best_overlaps(matches)
    conditions = [
        matches.hits[:, 0],
        same >= REACHED,
        other >= REACHED,
        same >= TOUCHED,
        other >= TOUCHED,
    ]
    return np.select(conditions, list(range(len(conditions))), default=len(conditions))


def best_overlaps(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """(n,) best IoU of every detection with the segments of its label in its video, and with those of other labels."""
    same, other = np.zeros(len(matches.hits)), np.zeros(len(matches.hits))
    order, truth_order = np.argsort(matches.video_code, kind="stable"), np.argsort(matches.truth_video, kind="stable")
    codes = np.arange(len(matches.videos) + 1)
    starts = np.searchsorted(matches.video_code[order], codes)
    truth_starts = np.searchsorted(matches.truth_video[truth_order], codes)
    for code in codes[:-1]:  # detections of videos without ground truth stay at 0
        rows = order[starts[code] : starts[code + 1]]
        truth = truth_order[truth_starts[code] : truth_starts[code + 1]]
        ratio = overlap_over_union(matches.segments[rows][:, None], matches.truth[truth][None])
        own = matches.class_code[rows][:, None] == matches.truth_class[truth][None]
        same[rows] = np.where(own, ratio, 0.0).max(axis=1, initial=0.0)
        other[rows] = np.where(own, 0.0, ratio).max(axis=1, initial=0.0)
    return same, other


def ranks_within_class(matches: Matches) -> np.ndarray:
    """(n,) 0 for the G best detections of each label, 1 for the next G, and so on."""
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    ranks = np.zeros(len(matches.hits), dtype=np.int64)
    for code, rows in enumerate(matches.by_class()):
        ranks[rows] = np.arange(rows.stop - rows.start) // counts[code]
    return ranks


def count_kinds(kinds: np.ndarray) -> dict[str, int]:
    """How many of each kind."""
    counts = np.bincount(kinds, minlength=len(KINDS))
    return dict(zip(KINDS, counts.tolist(), strict=True))


def gains(matches: Matches, kinds: np.ndarray) -> dict[str, float]:
    """By how many points mAP@0.50 (the mean over labels) would rise without the false positives of each kind."""
    counts = np.bincount(matches.truth_class, minlength=len(matches.classes))
    slices = list(matches.by_class())

    def mean_precision(kept: np.ndarray) -> float:
        values = [interpolated_precision(matches.hits[rows][kept[rows]], counts[c])[0] for c, rows in enumerate(slices)]
        return 100.0 * float(np.mean(values)) if values else 0.0

    whole = mean_precision(np.ones(len(kinds), dtype=bool))
    return {name: mean_precision(kinds != kind) - whole for kind, name in enumerate(KINDS) if name != "true"}


# -- misses ---------------------------------------------------------------------------------------------------------


def recall_by_property(matches: Matches, durations: dict[str, float]) -> dict[str, list[dict]]:
    """Recall at IoU 0.5 of the segments in bins of length, share of the video, position and number in the video.

    Found is what any of the 10·n best detections reaches, n the segments of that label in that video; `recall_at_1x`
    counts only the n best.
    """
    lengths = matches.truth[:, 1] - matches.truth[:, 0]
    durations_seconds = np.array([durations.get(matches.videos[code], np.nan) for code in matches.truth_video])
    middles = matches.truth.mean(axis=1) if len(matches.truth) else np.zeros(0)
    _, group, sizes = np.unique(matches.truth_keys, return_inverse=True, return_counts=True)
    properties = {
        "length_seconds": (lengths, LENGTH_EDGES),
        "share_of_video": (lengths / durations_seconds, SHARE_EDGES),
        "position_of_middle": (middles / durations_seconds, POSITION_EDGES),
        "instances_in_video": (sizes[group].astype(np.float64), COUNT_EDGES),
    }
    found, at_once = (found_at_multiple(matches, multiple)[:, 0] for multiple in (MULTIPLES, 1))
    return {name: recall_bins(values, edges, found, at_once) for name, (values, edges) in properties.items()}


def recall_bins(values: np.ndarray, edges: Sequence[float], found: np.ndarray, at_once: np.ndarray) -> list[dict]:
    """A row for every bin [from, below); values that are not known stand in none."""
    rows = []
    for low, high in pairwise(edges):
        inside = (values >= low) & (values < high)
        number = int(inside.sum())
        rows.append(
            {
                "from": low,
                "below": high,
                "segments": number,
                "missed": number - int(found[inside].sum()),
                "recall": 100.0 * float(found[inside].mean()) if number else np.nan,
                "recall_at_1x": 100.0 * float(at_once[inside].mean()) if number else np.nan,
            }
        )
    return rows
