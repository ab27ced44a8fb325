"""Blind floors: what a constant scores that never looks at the video or reads the text.

Constants are fitted on the training annotations. Every report shows them next to the score, because on these
benchmarks a constant gets surprisingly far (five fixed boxes reach R5@0.5 = 85 on Charades-STA).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from unloc.annotations.durations import required_durations
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.retrieval import ratings_of
from unloc.predictions.records import FramePrediction, MomentPrediction

GRID = np.linspace(0.0, 1.0, 51)
BOXES = np.array([(start, end) for start in GRID for end in GRID if end > start])  # all candidates of a floor
PAIRS_AT_ONCE = 200_000  # of boxes and segments, which fit into the processor's cache; all would take gigabytes
USUAL_FPS = (1.0, 2.0, 10.0)  # at which COIN is scored
FIT_OVERLAPS = {"blind_constant": 0.5, "blind_constant_at_0.7": 0.7}


def best_boxes(relative: np.ndarray, count: int, overlap: float = 0.5) -> np.ndarray:
    """(count, 2) boxes in shares of the video: each next one reaches the IoU with most segments not yet reached.

    Of boxes that reach equally many the one that overlaps those segments best is taken.
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


def relative_segments(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) annotated segments in shares of their video's duration, clamped to it, and (N,) labels ("" of queries).

    Segments of videos that no row describes are left out.
    """
    queries = manifest.queries.explode("segments").dropna(subset=["segments"])
    windows = np.array(queries["segments"].tolist(), dtype=np.float64).reshape(-1, 2)
    instances = manifest.instances[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    segments = np.concatenate([windows, instances])
    labels = np.array([*[""] * len(windows), *manifest.instances["label"]], dtype=object)
    videos = pd.concat([queries["video_id"], manifest.instances["video_id"]])
    lengths = videos.map(required_durations(manifest)).to_numpy(dtype=np.float64)
    known = ~np.isnan(lengths)
    return np.clip(segments[known] / lengths[known, None], 0.0, 1.0), labels[known]


def moment_floors(manifest: Manifest, train: Manifest) -> dict[str, list[MomentPrediction]]:
    """Constant boxes fitted on train at IoU 0.5 and 0.7, and the whole video, for every query in its order.

    Saliency: the mean curve of the ratings on train over the relative time of the video.
    """
    relative, _ = relative_segments(train)
    boxes = {name: best_boxes(relative, 5, overlap) for name, overlap in FIT_OVERLAPS.items()}
    boxes["whole_video"] = np.array([[0.0, 1.0]])
    rated = [ratings.mean(axis=1) for ratings in ratings_of(train) if ratings is not None and len(ratings)]
    places = np.linspace(0, 1, 20)
    curve = np.mean([np.interp(places, np.linspace(0, 1, len(one)), one) for one in rated], axis=0) if rated else None
    durations, floors = required_durations(manifest), {name: [] for name in boxes}
    columns = (manifest.queries[name].tolist() for name in ("qid", "video_id", "text"))
    for qid, video_id, text in zip(*columns, strict=True):
        duration, saliency = durations.get(video_id, 0.0), None
        if curve is not None:
            middles = (np.arange(int(duration / CLIP_SECONDS)) + 0.5) * CLIP_SECONDS / max(duration, 1e-9)
            saliency = np.interp(middles, places, curve)
        for name, constant in boxes.items():
            scores = np.linspace(1.0, 0.5, len(constant))[:, None]
            named = {"qid": qid, "video_id": video_id, "query": text, "saliency": saliency}
            floors[name].append(MomentPrediction(**named, windows=np.hstack([constant * duration, scores])))
    return floors


def detection_floors(manifest: Manifest, train: Manifest) -> dict[str, pd.DataFrame]:
    """Every class in every video with that class's best box; and with the true labels of each video known, constant
    boxes and the whole video (what a perfect video classifier would get without any localization).
    """
    durations = required_durations(manifest)
    relative, labels = relative_segments(train)
    boxes = best_boxes(relative, 10)
    truth = manifest.instances[["video_id", "label"]].drop_duplicates()
    truth = truth[truth["video_id"].isin(durations)]
    every = pd.DataFrame(product(durations, manifest.classes), columns=truth.columns)
    own_box = {name: best_boxes(relative[labels == name], 1)[0] for name in dict.fromkeys(labels)}
    per_class = np.array([own_box.get(name, boxes[0]) for name in every["label"]]).reshape(-1, 2)
    return {
        "blind_constant": _constant_detections(every, [per_class], durations),
        "constant_true_label": _constant_detections(truth, boxes, durations),
        "whole_video_true_label": _constant_detections(truth, [np.array([0.0, 1.0])], durations),
    }


def _constant_detections(rows: pd.DataFrame, boxes: Sequence[np.ndarray], durations: dict[str, float]) -> pd.DataFrame:
    """Each box, one for all rows (2,) or one per row (n, 2), as a detection of every row; the first box scores best."""
    lengths = rows["video_id"].map(durations).to_numpy(dtype=np.float64)
    tables = []
    for rank, box in enumerate(boxes):
        start, end = (box * lengths[:, None]).T
        tables.append(rows.assign(score=1.0 - 0.05 * rank, start_seconds=start, end_seconds=end))
    return pd.concat(tables, ignore_index=True)


def frame_floors(manifest: Manifest, predictions: Sequence[FramePrediction] | None) -> dict[str, list[FramePrediction]]:
    """Every frame background: on the frames of the predictions, without any at each of the usual frame rates."""
    if predictions:
        blank = [replace(item, labels=[None] * len(item.labels), scores=None) for item in predictions]
        return {"all_background": blank}
    videos = manifest.videos["video_id"].tolist()  # frames without label are background
    return {
        f"all_background_{fps:g}_fps": [FramePrediction(video_id=video, fps=fps, labels=[]) for video in videos]
        for fps in USUAL_FPS
    }
