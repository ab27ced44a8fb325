"""What is wrong with predictions beside the annotations they are scored with, and what becomes of it.

Each screen tells every kind of problem once, with how often and where first, and returns the predictions that can be
scored. What official code scores (detections of unknown videos, reversed segments) stays in; what it cannot score or
dies of (numbers that are none, unknown labels and queries) is left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from unloc.data.predictions import FramePrediction, MomentPrediction, Problems
from unloc.data.schema import Manifest
from unloc.errors import PredictionError
from unloc.evaluation.retrieval import align, text_key

NOT_FINITE = "NaN or infinite score or time: left out"
REVERSED = "reversed segment: scored as it stands"
UNKNOWN_VIDEO = "unknown video: its detections count as wrong"
UNKNOWN_LABEL = "unknown label: left out"
NO_TRUTH = "label without ground truth in this split: not scored"
UNKNOWN_QUERY = "unknown video or query: left out"
OTHER_WORDS = "query in other words than annotated: matched by its qid"
UNKNOWN_FRAMES = "unknown video: left out"
REPEATED = "duplicate id: of several predictions the last counts"
EMPTY = "empty list: nothing predicted"
MISSING_QUERY = "missing query: counts as missed"
MISSING_VIDEO = "missing video: counts as missed"
OTHER_LENGTH = "more or fewer frames than the video has: cut, or filled with background"


def screen_predictions(
    task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest, problems: Problems
) -> pd.DataFrame | list:
    """The predictions of a task that can be scored on the (selected) manifest."""
    screen = {"tal": screen_detections, "as": screen_frames}.get(task, screen_moments)
    return screen(predictions, manifest, problems)


def screen_detections(detections: pd.DataFrame, manifest: Manifest, problems: Problems) -> pd.DataFrame:
    """Detections with finite numbers and known labels."""
    numbers = detections[["start_seconds", "end_seconds", "score"]].to_numpy(dtype=np.float64)
    bad = ~np.isfinite(numbers).all(axis=1)
    _tell_rows(problems, NOT_FINITE, detections, bad)
    _tell_rows(problems, REVERSED, detections, ~bad & (numbers[:, 1] < numbers[:, 0]))
    _tell_rows(problems, UNKNOWN_VIDEO, detections, ~detections["video_id"].isin(manifest.videos["video_id"]))
    unknown = ~detections["label"].isin(manifest.classes)
    _tell_rows(problems, UNKNOWN_LABEL, detections, unknown)
    _tell_rows(problems, NO_TRUTH, detections, ~unknown & ~detections["label"].isin(manifest.instances["label"]))
    predicted = set(detections["video_id"])
    _tell_missing(problems, MISSING_VIDEO, [name for name in manifest.videos["video_id"] if name not in predicted])
    return detections[~(bad | unknown.to_numpy())].reset_index(drop=True)


def _tell_rows(problems: Problems, kind: str, detections: pd.DataFrame, rows: np.ndarray) -> None:
    """Tell the rows that are True, placed by video and number within it."""
    found = np.flatnonzero(rows)
    if len(found):
        row = detections.iloc[found[0]]
        number = int((detections["video_id"].iloc[: found[0]] == row["video_id"]).sum())
        segment = f"[{row['start_seconds']:g}, {row['end_seconds']:g}]"
        words = f"results[{row['video_id']!r}][{number}]: {row['label']!r} {segment} score {row['score']:g}"
        problems.add(kind, words, len(found))


def _tell_missing(problems: Problems, kind: str, names: Sequence[str]) -> None:
    if names:
        problems.add(kind, names[0], len(names))


def screen_moments(
    predictions: Sequence[MomentPrediction], manifest: Manifest, problems: Problems
) -> list[MomentPrediction]:
    """Predictions of known queries, without windows or saliency whose numbers are not finite."""
    known = list(manifest.queries[["qid", "video_id", "text"]].itertuples(index=False))
    by_qid = {(qid, video): text_key(video, text) for qid, video, text in known}
    by_text = Counter(text_key(video, text) for _, video, text in known)
    kept, seen = [], Counter()
    for item in predictions:
        key, ident = text_key(item.video_id, item.query), (item.qid, item.video_id)
        if ident not in by_qid and key not in by_text:
            problems.add(UNKNOWN_QUERY, _where(item))
            continue
        if ident in by_qid and item.query.strip() and key != by_qid[ident]:
            problems.add(OTHER_WORDS, f"{_where(item)}, annotated {by_qid[ident][1]!r}")
        allowed, ident = (1, ident) if ident in by_qid else (by_text[key], key)
        seen[ident] += 1
        if seen[ident] > allowed:
            problems.add(REPEATED, _where(item))
        kept.append(_finite_moments(item, problems))
    answers = zip(known, align(kept, manifest), strict=True)
    _tell_missing(problems, MISSING_QUERY, [f"{video}: {text!r}" for (_, video, text), item in answers if item is None])
    return kept


def _where(item: MomentPrediction) -> str:
    return f"{item.place}: qid {item.qid or 'not given'}, video {item.video_id}, query {item.query!r}"


def _finite_moments(item: MomentPrediction, problems: Problems) -> MomentPrediction:
    finite = np.isfinite(item.windows).all(axis=1)
    problems.add(NOT_FINITE, f"{_where(item)}: windows", int((~finite).sum()))
    reversed_ = finite & (item.windows[:, 1] < item.windows[:, 0])
    problems.add(REVERSED, _where(item), int(reversed_.sum()))
    if not len(item.windows):
        problems.add(EMPTY, _where(item))
    saliency = item.saliency
    if saliency is not None and not np.isfinite(saliency).all():
        problems.add("NaN or infinite saliency: the whole list is left out", _where(item))
        saliency = None
    return replace(item, windows=item.windows[finite], saliency=saliency)


def screen_frames(
    predictions: Sequence[FramePrediction], manifest: Manifest, problems: Problems
) -> list[FramePrediction]:
    """Predictions of known videos; scores that are not finite become the lowest of their video.

    Raises PredictionError where scores do not have one column per class of the manifest.
    """
    durations = dict(zip(manifest.videos["video_id"], manifest.videos["duration_seconds"], strict=True))
    kept: dict[str, FramePrediction] = {}
    for item in predictions:
        if item.video_id not in durations:
            problems.add(UNKNOWN_FRAMES, f"{item.place}: {item.video_id}")
            continue
        if item.video_id in kept:
            problems.add(REPEATED, f"{item.place}: {item.video_id}")
        if not item.labels:
            problems.add(EMPTY, f"{item.place}: {item.video_id}")
        elif abs(len(item.labels) - durations[item.video_id] * item.fps) > 1:
            problems.add(OTHER_LENGTH, f"{item.place}: {item.video_id} has {len(item.labels)} labels")
        unknown = [name for name in item.labels if name is not None and name not in manifest.classes]
        if unknown:
            problems.add("unknown label: its frames count as wrong", f"{item.place}: {unknown[0]!r}", len(unknown))
        kept[item.video_id] = replace(item, scores=_finite_scores(item, manifest, problems))
    missing = [video_id for video_id in durations if video_id not in kept]
    _tell_missing(problems, "missing video: counts as background", missing)
    return list(kept.values())


def _finite_scores(item: FramePrediction, manifest: Manifest, problems: Problems) -> np.ndarray | None:
    if item.scores is None:
        return None
    scores = np.asarray(item.scores)
    if scores.ndim != 2 or scores.shape[1] != len(manifest.classes):
        raise PredictionError(
            f"{item.place}: scores of {item.video_id} have shape {scores.shape}, expected (frames, "
            f"{len(manifest.classes)}): one column per class of manifest {manifest.name!r}, in its order"
        )
    finite = np.isfinite(scores)
    if finite.all():
        return scores
    problems.add("NaN or infinite score: counts as the lowest of its video", item.place, int((~finite).sum()))
    return np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
