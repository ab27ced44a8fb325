"""Blind floors: what a constant scores that never looks at the video or reads the text.

Constants are fitted on the training annotations. They stand beside every number, because in this field a constant
gets surprisingly far (five fixed boxes reach R5@0.5 = 85 on Charades-STA).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from unloc.annotations.durations import durations_of
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.highlight import ratings_of
from unloc.evaluation.matching import overlap_over_union
from unloc.predictions.records import FramePrediction, MomentPrediction

GRID = np.linspace(0.0, 1.0, 51)
BOXES = np.array([(start, end) for start in GRID for end in GRID if end > start])  # all that a floor chooses from
PAIRS_AT_ONCE = 200_000  # of boxes and segments, which fit the processor's cache; all would take gigabytes
USUAL_FPS = (1.0, 2.0, 10.0)
NUM_BOXES = {"mr": 5, "tal": 10}
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


def relative_segments(manifest: Manifest) -> tuple[np.ndarray, list[str]]:
    """(N, 2) annotated segments in shares of their video's length, cut to it, and the label of each ("" of queries)."""
    durations, shares, labels = durations_of(manifest), [], []
    for video_id, segments in zip(manifest.queries["video_id"].tolist(), manifest.queries["segments"], strict=True):
        shares += [(start, end, durations.get(video_id)) for start, end in segments]
    labels = [""] * len(shares)
    columns = (manifest.instances[name].tolist() for name in ("video_id", "start_seconds", "end_seconds"))
    shares += [(start, end, durations.get(video_id)) for video_id, start, end in zip(*columns, strict=True)]
    labels += manifest.instances["label"].tolist()
    known = [number for number, (_, _, length) in enumerate(shares) if length]
    numbers = np.array([shares[number] for number in known], dtype=np.float64).reshape(-1, 3)
    return np.clip(numbers[:, :2] / numbers[:, 2:], 0.0, 1.0), [labels[number] for number in known]


def moment_floors(manifest: Manifest, train: Manifest) -> dict[str, list[MomentPrediction]]:
    """Constant boxes fitted on train at IoU 0.5 and 0.7, and the whole video, for every query.

    Saliency: the mean course of the ratings on train.
    """
    (relative, _), course = relative_segments(train), mean_saliency_course(train)
    constants = {name: best_boxes(relative, NUM_BOXES["mr"], overlap) for name, overlap in FIT_OVERLAPS.items()}
    constants["whole_video"] = np.array([[0.0, 1.0]])
    return {name: _constant_moments(manifest, boxes, course) for name, boxes in constants.items()}


def _constant_moments(manifest: Manifest, boxes: np.ndarray, course: np.ndarray | None) -> list[MomentPrediction]:
    durations = durations_of(manifest)
    scores = np.linspace(1.0, 0.5, len(boxes))[:, None]
    predictions = []
    columns = (manifest.queries[name].tolist() for name in ("qid", "video_id", "text"))
    for qid, video_id, text in zip(*columns, strict=True):
        duration = durations.get(video_id, 0.0)
        saliency = None
        if course is not None:
            middles = (np.arange(int(duration / CLIP_SECONDS)) + 0.5) * CLIP_SECONDS / max(duration, 1e-9)
            saliency = np.interp(middles, np.linspace(0, 1, len(course)), course)
        windows = np.concatenate([boxes * duration, scores], axis=1)
        predictions.append(MomentPrediction(qid=qid, video_id=video_id, query=text, windows=windows, saliency=saliency))
    return predictions


def mean_saliency_course(train: Manifest, points: int = 20) -> np.ndarray | None:
    """Mean rating over the relative course of a training video, None where there are no ratings."""
    courses = [
        np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(ratings)), ratings.mean(axis=1))
        for ratings in ratings_of(train)
        if ratings is not None and len(ratings)
    ]
    return np.mean(courses, axis=0) if courses else None


def detection_floors(manifest: Manifest, train: Manifest) -> dict[str, pd.DataFrame]:
    """Every class in every video with that class's best box; and, knowing the true labels of each video, constant boxes
    and the whole video (what a perfect video classifier would get without any localization).
    """
    durations = durations_of(manifest)
    relative, labels = relative_segments(train)
    boxes, whole = best_boxes(relative, NUM_BOXES["tal"]), np.array([[0.0, 1.0]])
    truth = manifest.instances[["video_id", "label"]].drop_duplicates()
    truth = truth[truth["video_id"].isin(durations)]
    shown = truth["video_id"].to_numpy(dtype=object), truth["label"].to_numpy(dtype=object)
    every = np.repeat(np.array([*durations], dtype=object), len(manifest.classes))
    everything = every, np.tile(np.array(manifest.classes, dtype=object), len(durations))
    own = class_boxes(relative, labels)
    per_class = np.array([own.get(name, boxes[0]) for name in everything[1]]).reshape(-1, 2)
    return {
        "blind_constant": _constant_detections(*everything, [per_class], durations),
        "constant_true_label": _constant_detections(*shown, boxes, durations),
        "whole_video_true_label": _constant_detections(*shown, whole, durations),
    }


def class_boxes(relative: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """The box (2,) that reaches most segments of each label."""
    names, code = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return {name: best_boxes(relative[code == number], 1)[0] for number, name in enumerate(names)}


def _constant_detections(
    video_ids: np.ndarray, labels: np.ndarray, boxes: Sequence[np.ndarray], durations: dict[str, float]
) -> pd.DataFrame:
    """Each box, one for all rows (2,) or one a row (n, 2), as a detection of every row; the first boxes score best."""
    lengths = np.array([durations[video_id] for video_id in video_ids])
    tables = []
    for rank, box in enumerate(boxes):
        segments = np.broadcast_to(box, (len(lengths), 2)) * lengths[:, None]
        table = pd.DataFrame({"video_id": video_ids, "label": labels, "score": 1.0 - 0.05 * rank})
        tables.append(table.assign(start_seconds=segments[:, 0], end_seconds=segments[:, 1]))
    return pd.concat(tables, ignore_index=True)


def frame_floors(predictions: Sequence[FramePrediction]) -> dict[str, list[FramePrediction]]:
    """Every frame of the predictions background."""
    return {"all_background": [replace(item, labels=[None] * len(item.labels), scores=None) for item in predictions]}


def background_floors(manifest: Manifest) -> dict[str, list[FramePrediction]]:
    """Every frame background at each of the frame rates that COIN is scored at."""
    videos = manifest.videos["video_id"].tolist()
    return {f"all_background_{fps:g}_fps": [_background(video_id, fps) for video_id in videos] for fps in USUAL_FPS}


def _background(video_id: str, fps: float) -> FramePrediction:
    return FramePrediction(video_id=video_id, fps=fps, labels=[])  # frames without label are background
