"""Error analysis: the kind of each false positive, the mAP that each kind costs, and which segments are missed.

After DETAD (Alwassel et al., ECCV 2018, §3–5). At IoU 0.5 a false positive is the first that applies of
duplicate        reaches a segment of its label that a better detection has taken
wrong label      reaches a segment of another label
poor boundary    overlaps a segment of its label by at least 0.1
confused         overlaps a segment of another label by at least 0.1
background       overlaps nothing by 0.1
The 10·G best of every label are counted, G its number of segments. In moment retrieval each query is a label of its
own; in action segmentation runs of equal labels are the segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd

from unloc.annotations.durations import required_durations
from unloc.annotations.schema import INSTANCE_COLUMNS, Manifest
from unloc.evaluation.detection import class_average_precision, found_at_multiple
from unloc.evaluation.matching import Matches, match_detections, overlap_over_union
from unloc.evaluation.queries import align, ground_truth_windows
from unloc.evaluation.segmentation import label_runs
from unloc.predictions.records import detections_table

REACHED, TOUCHED = 0.5, 0.1
KINDS = ("true", "duplicate", "wrong label", "poor boundary", "confused", "background")
MULTIPLES = 10
LENGTH_EDGES = (0.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, np.inf)
SHARE_EDGES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, np.inf)
POSITION_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, np.inf)
COUNT_EDGES = (1.0, 2.0, 3.0, 6.0, 11.0, np.inf)


def analyse(task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest) -> dict:
    """The `analysis` of metrics.json, for a (selected) manifest."""
    detections, instances = as_detections(task, predictions, manifest)
    matches = match_detections(detections, instances, np.array([REACHED]))
    kinds, counts = kinds_of(matches), np.bincount(matches.truth_class, minlength=len(matches.classes))
    rank = np.zeros(len(kinds), dtype=np.int64)  # 0 for the G best detections of each label, 1 for the next G, …
    for code, rows in enumerate(matches.by_class()):
        rank[rows] = np.arange(rows.stop - rows.start) // counts[code]
    return {
        "iou": REACHED,
        "background_below": TOUCHED,
        "counted": f"the {MULTIPLES}·G best of every label, G its number of segments",
        "num_segments": len(instances),
        "unknown_labels": len(detections) - len(kinds),
        "counts": _count_kinds(kinds[rank < MULTIPLES]),
        "counts_by_rank": [_count_kinds(kinds[rank == multiple]) for multiple in range(MULTIPLES)],
        "gain_without": gains(matches, kinds),
        "recall": recall_by_property(matches, required_durations(manifest)),
    }


def as_detections(
    task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(detections, instances) of any task with a label each: the class, or the number of the query.

    Runs of equal labels become detections with equal scores. Of windows with equal scores the first of the list is
    put last, because matching tries the later one first.
    """
    if task == "tal":
        return predictions, manifest.instances
    found = []
    if task == "as":
        durations = required_durations(manifest)
        for item in predictions:
            names = list(dict.fromkeys(name for name in item.labels if name is not None))
            code = {None: -1} | {name: number for number, name in enumerate(names)}
            edges = item.edges(durations.get(item.video_id, 0.0))
            for label, first, after in label_runs(np.array([code[name] for name in item.labels], dtype=np.int64)):
                found.append((item.video_id, names[label], edges[first], edges[after], 1.0))
        return detections_table(found), manifest.instances
    rows, videos = [], manifest.queries["video_id"].tolist()
    aligned, truth = align(predictions, manifest), ground_truth_windows(manifest, clamp=True)
    for number, (item, video_id, windows) in enumerate(zip(aligned, videos, truth, strict=True)):
        if item is not None:
            found += [(item.video_id, str(number), *window) for window in item.windows[::-1]]
        rows += [(video_id, None, str(number), start, end, None) for start, end in windows]
    return detections_table(found), pd.DataFrame(rows, columns=INSTANCE_COLUMNS)


# -- false positives ------------------------------------------------------------------------------------------------


def kinds_of(matches: Matches) -> np.ndarray:
    """(n,) index into KINDS of every detection."""
    same, other = np.zeros((2, len(matches.hits)))  # best IoU with segments of its label in its video, and of others
    by_video = (
        np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(matches.videos))))
        for codes in (matches.video_code, matches.truth_video)
    )
    # Detections in videos without ground truth stay at 0.
    for rows, truth in zip(*(groups[: len(matches.videos)] for groups in by_video), strict=True):
        ratio = overlap_over_union(matches.segments[rows][:, None], matches.truth[truth][None])
        own = matches.class_code[rows][:, None] == matches.truth_class[truth][None]
        same[rows] = np.where(own, ratio, 0.0).max(axis=1, initial=0.0)
        other[rows] = np.where(own, 0.0, ratio).max(axis=1, initial=0.0)
    conditions = [matches.hits[:, 0], same >= REACHED, other >= REACHED, same >= TOUCHED, other >= TOUCHED]
    return np.select(conditions, list(range(len(conditions))), default=len(conditions))


def _count_kinds(kinds: np.ndarray) -> dict[str, int]:
    counts = np.bincount(kinds, minlength=len(KINDS))
    return dict(zip(KINDS, counts.tolist(), strict=True))


def gains(matches: Matches, kinds: np.ndarray) -> dict[str, float]:
    """Points of mAP@0.50 (the mean over labels) gained without the false positives of each kind."""

    def mean_precision(kept: np.ndarray) -> float:
        part = replace(matches, hits=matches.hits[kept], class_code=matches.class_code[kept])
        return 100.0 * float(class_average_precision(part).mean()) if matches.classes else 0.0

    whole = mean_precision(np.ones(len(kinds), dtype=bool))
    return {name: mean_precision(kinds != kind) - whole for kind, name in enumerate(KINDS) if name != "true"}


# -- misses ---------------------------------------------------------------------------------------------------------


def recall_by_property(matches: Matches, durations: Mapping[str, float]) -> dict[str, list[dict]]:
    """Recall at IoU 0.5 of the segments in bins of length, share of the video, position and number in the video.

    A segment is found if any of the 10·n best detections reaches it, n the segments of that label in that video;
    `recall_at_1x` uses only the n best.
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
    recall: dict[str, list[dict]] = {name: [] for name in properties}
    for name, (values, edges) in properties.items():
        for low, high in pairwise(edges):
            inside = (values >= low) & (values < high)  # unknown values are in no bin
            number = int(inside.sum())
            recall[name].append(
                {
                    "from": low,
                    "below": high,
                    "segments": number,
                    "missed": number - int(found[inside].sum()),
                    "recall": 100.0 * float(found[inside].mean()) if number else np.nan,
                    "recall_at_1x": 100.0 * float(at_once[inside].mean()) if number else np.nan,
                }
            )
    return recall
