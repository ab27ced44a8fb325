"""Blind floors: what a constant scores that never looks at the video or reads the text.

Constants are fitted on the training annotations. Every report shows them next to the score, because on these
benchmarks a constant gets surprisingly far (five fixed boxes reach R5@0.5 = 85 on Charades-STA).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from unloc.annotations.schema import CLIP_SECONDS, INSTANCE_COLUMNS, Manifest
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.retrieval import ratings_of
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table

BOXES = np.linspace(0.0, 1.0, 51)[np.column_stack(np.triu_indices(51, k=1))]  # (start, end) of all candidates
PAIRS_AT_ONCE = 200_000  # of boxes and segments, which fit into the processor's cache; all would take gigabytes


def best_boxes(relative: np.ndarray, count: int, overlap: float = 0.5) -> np.ndarray:
    """(count, 2) boxes in shares of the video: each next one reaches the IoU with most segments not yet reached; of
    equally good ones the one that overlaps those segments best.
    """
    if not len(relative):
        return np.array([[0.0, 1.0]]).repeat(count, axis=0)
    parts = np.array_split(BOXES, min(len(BOXES), 1 + len(BOXES) * len(relative) // PAIRS_AT_ONCE))
    reached = np.concatenate([overlap_over_union(part[:, None], relative[None]) >= overlap for part in parts])
    counts, open_, boxes = reached.sum(axis=1), np.ones(len(relative), dtype=bool), []
    for _ in range(count):
        tied = np.flatnonzero(counts == counts.max())
        overlaps = overlap_over_union(BOXES[tied][:, None], relative[open_][None])
        best = tied[overlaps.sum(axis=1).argmax()]
        boxes.append(BOXES[best])
        newly = reached[best] & open_
        counts -= reached[:, newly].sum(axis=1)
        open_ &= ~newly
    return np.asarray(boxes)


def annotated_segments(manifest: Manifest) -> pd.DataFrame:
    """Every annotated segment as a row like those of `instances`; those of queries first, with the label ""."""
    queries = manifest.queries.explode("segments").dropna(subset=["segments"])
    ends = np.array(queries["segments"].tolist(), dtype=np.float64).reshape(-1, 2)
    queries = queries.assign(label="", start_seconds=ends[:, 0], end_seconds=ends[:, 1])
    return pd.concat([table[INSTANCE_COLUMNS] for table in (queries, manifest.instances)], ignore_index=True)


def relative_segments(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) segments in shares of their video, clamped to it, and (N,) labels ("" of queries); of described videos."""
    table = annotated_segments(manifest)
    lengths = table["video_id"].map(manifest.required_durations()).to_numpy(dtype=np.float64)[:, None]
    relative = np.clip(table[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64) / lengths, 0.0, 1.0)
    known = ~np.isnan(lengths[:, 0])
    return relative[known], table["label"].to_numpy(dtype=object)[known]


def moment_floors(manifest: Manifest, train: Manifest) -> dict[str, list[MomentPrediction]]:
    """For every query boxes fitted on train at IoU 0.5 and 0.7, and the whole video; saliency is the mean curve of the
    ratings on train over the relative time of the video.
    """
    relative, _ = relative_segments(train)
    boxes = {
        "blind_constant": best_boxes(relative, 5, 0.5),
        "blind_constant_at_0.7": best_boxes(relative, 5, 0.7),
        "whole_video": np.array([[0.0, 1.0]]),
    }
    rated = [ratings.mean(axis=1) for ratings in ratings_of(train) if ratings is not None and len(ratings)]
    places = np.linspace(0, 1, 20)
    curve = np.mean([np.interp(places, np.linspace(0, 1, len(one)), one) for one in rated], axis=0) if rated else None
    durations, floors = manifest.required_durations(), {name: [] for name in boxes}
    for qid, video_id, text in manifest.queries[["qid", "video_id", "text"]].itertuples(index=False):
        duration, saliency = durations.get(video_id, 0.0), None
        if curve is not None:
            middles = (np.arange(int(duration / CLIP_SECONDS)) + 0.5) * CLIP_SECONDS / max(duration, 1e-9)
            saliency = np.interp(middles, places, curve)
        for name, constant in boxes.items():
            windows = np.column_stack([constant * duration, np.linspace(1.0, 0.5, len(constant))])
            item = MomentPrediction(qid=qid, video_id=video_id, query=text, windows=windows, saliency=saliency)
            floors[name].append(item)
    return floors


def rejection_floors(manifest: Manifest, train: Manifest) -> dict[str, list[list[MomentPrediction]]]:
    """Every query rejected; and, if all durations are known, accepted with the constants of `moment_floors`."""
    columns = manifest.queries[["qid", "video_id", "text"]].itertuples(index=False)
    rejected = [MomentPrediction(qid=q, video_id=video, query=text, existence=0.0) for q, video, text in columns]
    durations = pd.concat([manifest.videos["duration_seconds"], train.videos["duration_seconds"]])
    constants = {"reject_all": rejected} | (moment_floors(manifest, train) if durations.gt(0).all() else {})
    return {
        name: [[item if name == "reject_all" else replace(item, existence=1.0)] for item in items]
        for name, items in constants.items()
    }


def detection_floors(manifest: Manifest, train: Manifest) -> dict[str, pd.DataFrame]:
    """Every class in every video with that class's best box; and with the true labels of each video known, constant
    boxes and the whole video (what a perfect video classifier would get without any localization).
    """
    durations = manifest.required_durations()
    relative, labels = relative_segments(train)
    boxes = best_boxes(relative, 10)
    truth = manifest.instances[["video_id", "label"]].drop_duplicates()
    truth = truth[truth["video_id"].isin(durations)]
    every = pd.DataFrame(product(durations, manifest.classes), columns=truth.columns)
    own_box = {name: best_boxes(relative[labels == name], 1)[0] for name in dict.fromkeys(labels)}
    per_class = np.array([own_box.get(name, boxes[0]) for name in every["label"]]).reshape(-1, 2)

    def constant(rows: pd.DataFrame, boxes: Sequence[np.ndarray]) -> pd.DataFrame:
        """Each box, one for all rows (2,) or one per row (n, 2), as a detection of every row; the first scores best."""
        tables, lengths = [], rows["video_id"].map(durations).to_numpy(dtype=np.float64)[:, None]
        for rank, box in enumerate(boxes):
            start, end = (box * lengths).T
            tables.append(rows.assign(score=1.0 - 0.05 * rank, start_seconds=start, end_seconds=end))
        return pd.concat(tables, ignore_index=True)

    return {
        "blind_constant": constant(every, [per_class]),
        "constant_true_label": constant(truth, boxes),
        "whole_video_true_label": constant(truth, [np.array([0.0, 1.0])]),
    }


def label_floors(manifest: Manifest, train: Manifest) -> dict[str, pd.DataFrame]:
    """For every video the same five classes: those of most videos of train, of equal ones the first of the manifest."""
    counts = train.instances[["video_id", "label"]].drop_duplicates()["label"].value_counts()
    best = sorted(manifest.classes, key=lambda name: -counts.get(name, 0))[:5]
    rows = product(manifest.videos["video_id"].unique(), enumerate(best))
    return {"blind_constant": detections_table((video, name, 0.0, 0.0, -rank) for video, (rank, name) in rows)}


FLOORS = {"tal": detection_floors, "cls": label_floors, "mr": moment_floors, "hd": moment_floors}
FLOORS["rejection"] = rejection_floors
"""The floors of a task but as, by the (selected) manifest and the training split."""


def frame_floors(manifest: Manifest, predictions: Sequence[FramePrediction] | None) -> dict[str, list[FramePrediction]]:
    """Every frame background: on the frames of the predictions, without any at each of the usual frame rates."""
    if predictions:
        blank = [replace(item, labels=[None] * len(item.labels), scores=None) for item in predictions]
        return {"all_background": blank}
    videos = manifest.videos["video_id"].tolist()
    return {
        f"all_background_{fps}_fps": [FramePrediction(video_id=video, fps=float(fps), labels=[]) for video in videos]
        for fps in (1, 2, 10)  # at which COIN is scored
    }
