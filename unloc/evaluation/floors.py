"""Blind floors: what a constant scores that never looks at the video or reads the text.

Constants are fitted on the training annotations. They stand beside every number, because in this field a constant
gets surprisingly far (five fixed boxes reach R5@0.5 = 85 on Charades-STA).
"""

import numpy as np
import pandas as pd

from unloc.data.predictions import FramePrediction, MomentPrediction, detections_table
from unloc.data.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.highlight import ratings_of

GRID = np.linspace(0.0, 1.0, 21)
NUM_BOXES = {"mr": 5, "tal": 10}
FIT_OVERLAP = 0.5


def durations_of(manifest: Manifest) -> dict[str, float]:
    """Seconds of every video of which the manifest knows it."""
    videos = manifest.videos.drop_duplicates("video_id").dropna(subset=["duration_seconds"])
    return videos.set_index("video_id")["duration_seconds"].to_dict()


def best_boxes(relative: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) boxes in shares of the video: each next one reaches IoU 0.5 with most segments not yet reached."""
    starts, ends = np.meshgrid(GRID, GRID, indexing="ij")
    grid = np.stack([starts[ends > starts], ends[ends > starts]], axis=1)
    if not len(relative):
        return grid[-1:].repeat(count, axis=0)
    reached = overlap_over_union(grid[:, None], relative[None]) >= FIT_OVERLAP
    boxes, open_ = [], np.ones(len(relative), dtype=bool)
    for _ in range(count):
        best = int((reached & open_).sum(axis=1).argmax())
        boxes.append(grid[best])
        open_ &= ~reached[best]
    return np.asarray(boxes)


def relative_segments(manifest: Manifest) -> np.ndarray:
    """(N, 2) annotated segments in shares of their video's length, cut to it."""
    durations = durations_of(manifest)
    pairs = [
        (segment, durations.get(video_id))
        for video_id, segments in manifest.queries[["video_id", "segments"]].itertuples(index=False)
        for segment in segments
    ]
    columns = ["video_id", "start_seconds", "end_seconds"]
    pairs += [
        ((start, end), durations.get(video_id))
        for video_id, start, end in manifest.instances[columns].itertuples(index=False)
    ]
    shares = np.asarray([np.asarray(segment) / length for segment, length in pairs if length]).reshape(-1, 2)
    return np.clip(shares, 0.0, 1.0)


def moment_floors(manifest: Manifest, train: Manifest) -> dict[str, list[MomentPrediction]]:
    """Constant boxes fitted on train, and the whole video, for every query; saliency: the mean course on train."""
    boxes = best_boxes(relative_segments(train), NUM_BOXES["mr"])
    constants = {"blind_constant": boxes, "whole_video": np.array([[0.0, 1.0]])}
    course = mean_saliency_course(train)
    return {name: _constant_moments(manifest, boxes, course) for name, boxes in constants.items()}


def _constant_moments(manifest: Manifest, boxes: np.ndarray, course: np.ndarray | None) -> list[MomentPrediction]:
    durations = durations_of(manifest)
    scores = np.linspace(1.0, 0.5, len(boxes))[:, None]
    predictions = []
    for qid, video_id, text in manifest.queries[["qid", "video_id", "text"]].itertuples(index=False):
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
        if len(ratings)
    ]
    return np.mean(courses, axis=0) if courses else None


def detection_floors(manifest: Manifest, train: Manifest) -> dict[str, pd.DataFrame]:
    """Constant boxes for every class by its frequency; and, knowing the true labels of each video, the same boxes and
    the whole video (what a perfect video classifier would get without any localization).
    """
    boxes = best_boxes(relative_segments(train), NUM_BOXES["tal"])
    durations = durations_of(manifest)
    frequency = train.instances["label"].value_counts(normalize=True)
    truth = manifest.instances.groupby("video_id", sort=False)["label"].unique()
    rows: dict[str, list] = {"blind_constant": [], "constant_true_label": [], "whole_video_true_label": []}
    for video_id, duration in durations.items():
        scaled = [(start * duration, end * duration, 1.0 - 0.05 * rank) for rank, (start, end) in enumerate(boxes)]
        for name in manifest.classes:
            prior = float(frequency.get(name, 0.0))
            rows["blind_constant"] += [(video_id, name, start, end, prior * score) for start, end, score in scaled]
        for name in truth.get(video_id, []):
            rows["constant_true_label"] += [(video_id, name, *box) for box in scaled]
            rows["whole_video_true_label"].append((video_id, name, 0.0, duration, 1.0))
    return {name: detections_table(found) for name, found in rows.items()}


def frame_floors(manifest: Manifest, fps: float) -> dict[str, list[FramePrediction]]:
    """Every frame background."""
    lengths = {video_id: int(np.ceil(duration * fps - 1e-6)) for video_id, duration in durations_of(manifest).items()}
    predictions = [
        FramePrediction(video_id=video_id, fps=fps, labels=[None] * length) for video_id, length in lengths.items()
    ]
    return {"all_background": predictions}
