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

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.schema import INSTANCE_COLUMNS, Manifest
from unloc.evaluation.detection import Matches, class_average_precision, found_at_multiple, overlap_over_union
from unloc.evaluation.retrieval import align, ground_truth_windows
from unloc.evaluation.screening import Predictions
from unloc.predictions.records import detections_table

REACHED, TOUCHED = 0.5, 0.1
KINDS = ("true", "duplicate", "wrong label", "poor boundary", "confused", "background")
PLOTS = ("false_positives.svg", "gains.svg", "recall.svg")
MULTIPLES = 10


def analyse(task: str, predictions: Predictions, manifest: Manifest) -> dict:
    """The `analysis` of metrics.json, for a (selected) manifest.

    Recall at IoU 0.5 is that of the segments in bins of length, share of the video, position and number in the video. A
    segment is found if any of the 10·n best detections reaches it, n the segments of that label in that video;
    `recall_at_1x` uses only the n best.
    """
    detections, instances = as_detections(task, predictions, manifest)
    matches, durations = Matches(detections, instances, np.array([REACHED])), manifest.required_durations()
    kinds, counts = kinds_of(matches), np.bincount(matches.truth_class, minlength=len(matches.classes))
    # 0 for the G best detections of each label, 1 for the next G, …
    rank = (np.arange(len(kinds)) - matches.starts[matches.class_code]) // counts[matches.class_code]

    def count(chosen: np.ndarray) -> dict[str, int]:
        return dict(zip(KINDS, np.bincount(chosen, minlength=len(KINDS)).tolist(), strict=True))

    def precision_of(kept: np.ndarray) -> float:  # mAP@0.50, the mean over labels
        return 100.0 * float(class_average_precision(matches, kept).mean()) if matches.classes else 0.0

    lengths, middles = np.diff(matches.truth)[:, 0], matches.truth.mean(axis=1)
    of_video = np.array([durations.get(matches.videos[code], np.nan) for code in matches.truth_video])
    _, group, sizes = np.unique(matches.truth_keys, return_inverse=True, return_counts=True)
    properties = {
        "length_seconds": (lengths, (0.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, np.inf)),
        "share_of_video": (lengths / of_video, (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, np.inf)),
        "position_of_middle": (middles / of_video, (0.0, 0.2, 0.4, 0.6, 0.8, np.inf)),
        "instances_in_video": (sizes[group], (1.0, 2.0, 3.0, 6.0, 11.0, np.inf)),
    }
    found, at_once = (found_at_multiple(matches, multiple)[:, 0] for multiple in (MULTIPLES, 1))
    recall: dict[str, list[dict]] = {name: [] for name in properties}
    for name, (values, edges) in properties.items():
        for low, high in pairwise(edges):
            inside = (values >= low) & (values < high)  # unknown values are in no bin
            number = int(inside.sum())
            row = {"from": low, "below": high, "segments": number, "missed": number - int(found[inside].sum())}
            for key, flags in (("recall", found), ("recall_at_1x", at_once)):
                row[key] = 100.0 * float(flags[inside].mean()) if number else np.nan
            recall[name].append(row)
    whole = precision_of(np.ones(len(kinds), dtype=bool))
    return {
        "iou": REACHED,
        "background_below": TOUCHED,
        "counted": f"the {MULTIPLES}·G best of every label, G its number of segments",
        "num_segments": len(instances),
        "unknown_labels": len(detections) - len(kinds),
        "counts": count(kinds[rank < MULTIPLES]),
        "counts_by_rank": [count(kinds[rank == multiple]) for multiple in range(MULTIPLES)],
        "gain_without": {n: precision_of(kinds != kind) - whole for kind, n in enumerate(KINDS) if n != "true"},
        "recall": recall,
    }


def as_detections(task: str, predictions: Predictions, manifest: Manifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(detections, instances) of any task with a label each: the class, or the number of the query."""
    if task in ("tal", "cls"):
        return predictions, manifest.instances
    found = []
    if task == "as":
        durations = manifest.required_durations()
        for item in predictions:
            found += [(item.video_id, *one, 1.0) for one in item.segments(durations.get(item.video_id, 0.0))]
        return detections_table(found), manifest.instances
    rows, aligned, truth = [], align(predictions, manifest), ground_truth_windows(manifest, clamp=True)
    for number, (item, video_id, windows) in enumerate(zip(aligned, manifest.queries["video_id"], truth, strict=True)):
        if item is not None:
            # Reversed: of equal scores matching tries the later one first.
            found += [(item.video_id, str(number), *window) for window in item.windows[::-1]]
        rows += [(video_id, None, str(number), start, end, None) for start, end in windows]
    return detections_table(found), pd.DataFrame(rows, columns=INSTANCE_COLUMNS)


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


def write_plots(analysis: dict, folder: Path) -> list[Path]:
    """Three SVG files below the folder."""
    import matplotlib  # here: it takes a second
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    folder.mkdir(parents=True, exist_ok=True)
    counts, gains = pd.DataFrame(analysis["counts_by_rank"], index=range(1, MULTIPLES + 1)), analysis["gain_without"]
    # The same analysis gives the same bytes: no date, fixed ids; text is kept as text.
    style = {"svg.hashsalt": "unloc", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figures = [Figure(figsize=size, layout="constrained") for size in ((6.4, 3.2), (5.6, 2.6), (8.4, 5.6))]

        # Shares of the kinds among the G best detections of each label, the next G, and so on.
        shares = 100.0 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
        options = {"stacked": True, "width": 0.85, "rot": 0, "ylim": (0, 100), "colormap": "Set2"}
        axis = shares.plot.bar(ax=figures[0].subplots(), **options)
        axis.set(xlabel="rank, in multiples of G segments of the label", ylabel="% of detections")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

        axis = pd.Series(gains).plot.barh(ax=figures[1].subplots())
        axis.set(xlabel="points of mAP@0.50 gained without them")
        axis.invert_yaxis()

        for axis, (name, rows) in zip(figures[2].subplots(2, 2).flat, analysis["recall"].items(), strict=True):
            table = pd.DataFrame(rows, index=[f"≥ {row['from']:g}\n({row['segments']})" for row in rows])
            table = table[["recall", "recall_at_1x"]]
            table.plot.bar(ax=axis, rot=0, fontsize=7, ylim=(0, 100), legend=False)
            axis.set(title=name.replace("_", " "), ylabel="% found")
        labels = ("of the 10·n best", "of the n best (n segments of the label in the video; in brackets: segments)")
        figures[2].legend(axis.containers, labels, loc="outside upper center", ncols=2, frameon=False)
        paths = [folder / name for name in PLOTS]
        for figure, path in zip(figures, paths, strict=True):
            figure.savefig(path, format="svg", metadata={"Date": None})
    return paths
