"""What is wrong with predictions beside the annotations they are scored with, and what becomes of it.

Each screen tells every kind of problem once, with how often and where first, and returns the predictions that can be
scored. What official code scores (detections of unknown videos, reversed segments) stays in; what it cannot score or
dies of (numbers that are none, unknown labels and queries) is left out.
"""

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from unloc.annotations.durations import stated_durations
from unloc.annotations.problems import Problems
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.errors import PredictionError
from unloc.evaluation.mismatch import other_unit
from unloc.evaluation.retrieval import QueryKeys, align, text_key
from unloc.predictions.records import FramePrediction, MomentPrediction, StoredScores

NOT_FINITE = "NaN or infinite score or time: left out"
REVERSED = "reversed segment: scored as it stands"
UNKNOWN_VIDEO = "unknown video: its detections count as wrong"
UNKNOWN_LABEL = "unknown label: left out"
NO_TRUTH = "label without ground truth in this split: not scored"
UNKNOWN_QUERY = "unknown video or query: left out"
OTHER_WORDS = "query in other words than annotated: matched by its qid"
OTHER_VIDEO = "qid with another video than annotated: matched by its qid"
UNSORTED = "windows not by falling score: moment_detr and 2d-tan take the first of the list, other protocols the best"
NO_SALIENCY = "no pred_saliency_scores: all clips rank alike"
SALIENCY_LENGTHS = {
    0.5: "saliency at half the rate of one score per 2 s clip: padded with zeros, as officially",
    2.0: "saliency at double the rate of one score per 2 s clip: cut, as officially",
    None: "more or fewer saliency scores than the video has 2 s clips: cut, or padded with zeros, as officially",
}
UNKNOWN_FRAMES = "unknown video: left out"
REPEATED = "duplicate id: of several predictions the last counts"
EMPTY = "empty list: nothing predicted"
MISSING_QUERY = "missing query: counts as missed"
MISSING_VIDEO = "missing video: counts as missed"
TOO_LATE = "label that begins after the end of its video: cut"
OTHER_LENGTH = "more or fewer frames than the video has: cut, or filled with background"


def screen_predictions(
    task: str, predictions: pd.DataFrame | Sequence, manifest: Manifest, problems: Problems
) -> pd.DataFrame | list:
    """The predictions of a task that can be scored on the (selected) manifest."""
    if task == "tal":
        return screen_detections(predictions, manifest, problems)
    if task == "as":
        return screen_frames(predictions, manifest, problems)
    return screen_moments(predictions, manifest, problems, rated=task == "hd")


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
    lengths = detections["video_id"].map(stated_durations(manifest)).to_numpy(dtype=np.float64)
    _tell_units(problems, numbers[~bad, :2], lengths[~bad])
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


def _tell_units(problems: Problems, segments: np.ndarray, durations: np.ndarray) -> None:
    unit = other_unit(segments, durations)
    if unit:
        kind = f"segments look like {unit}, not seconds: scored as they stand"
        problems.add(kind, f"[{segments[0, 0]:g}, {segments[0, 1]:g}] in a video of {durations[0]:g} s", len(segments))


def screen_moments(
    predictions: Sequence[MomentPrediction], manifest: Manifest, problems: Problems, *, rated: bool = False
) -> list[MomentPrediction]:
    """Predictions of known queries, without windows or saliency whose numbers are not finite.

    `rated`: saliency is scored too, so what is wrong with it is told.
    """
    keys, durations = QueryKeys(manifest), stated_durations(manifest)
    annotated = {keys.by_qid(qid, video): (video, text) for qid, video, text in keys.queries}
    kept, seen, lengths = [], Counter(), []
    for item in predictions:
        key = keys.of(item)
        if key is None:
            problems.add(UNKNOWN_QUERY, _where(item))
            continue
        video_id, text = annotated.get(key, (item.video_id, item.query))
        if video_id != item.video_id:
            problems.add(OTHER_VIDEO, f"{_where(item)}, annotated {video_id}")
        if item.query.strip() and text_key(video_id, item.query) != text_key(video_id, text):
            problems.add(OTHER_WORDS, f"{_where(item)}, annotated {text!r}")
        seen[key] += 1
        if seen[key] > keys.counts.get(key, 1):
            problems.add(REPEATED, _where(item))
        kept.append(_finite_moments(item, problems))
        duration = durations.get(video_id, np.nan)
        lengths.append(np.full(len(kept[-1].windows), duration))
        if rated:
            _tell_saliency(item, duration, problems)
    if kept:
        _tell_units(problems, np.concatenate([item.windows[:, :2] for item in kept]), np.concatenate(lengths))
    answers = zip(keys.queries, align(kept, manifest), strict=True)
    _tell_missing(problems, MISSING_QUERY, [f"{video}: {text!r}" for (_, video, text), item in answers if item is None])
    return kept


def _tell_saliency(item: MomentPrediction, duration: float, problems: Problems) -> None:
    """Tell saliency that is missing or has another number of scores than the video has clips of 2 s."""
    if item.saliency is None:
        problems.add(NO_SALIENCY, _where(item))
        return
    found, clips = len(item.saliency), duration / CLIP_SECONDS
    if np.isnan(clips) or int(clips) <= found <= np.ceil(clips):
        return
    rate = next((rate for rate in (0.5, 2.0) if abs(found - rate * clips) <= 1 < abs(found - clips)), None)
    problems.add(SALIENCY_LENGTHS[rate], f"{_where(item)}: {found} scores in {duration:g} s")


def _where(item: MomentPrediction) -> str:
    return f"{item.place}: qid {item.qid or 'not given'}, video {item.video_id}, query {item.query!r}"


def _finite_moments(item: MomentPrediction, problems: Problems) -> MomentPrediction:
    finite = np.isfinite(item.windows).all(axis=1)
    problems.add(NOT_FINITE, f"{_where(item)}: windows", int((~finite).sum()))
    reversed_ = finite & (item.windows[:, 1] < item.windows[:, 0])
    problems.add(REVERSED, _where(item), int(reversed_.sum()))
    if not len(item.windows):
        problems.add(EMPTY, _where(item))
    if (np.diff(item.windows[finite, 2]) > 0).any():
        problems.add(UNSORTED, _where(item))
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
    durations = stated_durations(manifest)
    kept: dict[str, FramePrediction] = {}
    for item in predictions:
        if item.video_id not in durations:
            problems.add(UNKNOWN_FRAMES, f"{item.place}: {item.video_id}")
            continue
        if item.video_id in kept:
            problems.add(REPEATED, f"{item.place}: {item.video_id}")
        if not item.labels:
            problems.add(EMPTY, f"{item.place}: {item.video_id}")
        elif item.fps is not None and abs(len(item.labels) - durations[item.video_id] * item.fps) > 1:
            problems.add(OTHER_LENGTH, f"{item.place}: {item.video_id} has {len(item.labels)} labels")
        elif item.fps is None and item.times_seconds[-1] > durations[item.video_id] + 1.0:
            late = int((item.times_seconds >= durations[item.video_id]).sum())
            problems.add(TOO_LATE, f"{item.place}: {item.video_id} at {item.times_seconds[-1]:g} s", late)
        unknown = [name for name in item.labels if name is not None and name not in manifest.classes]
        if unknown:
            problems.add("unknown label: its frames count as wrong", f"{item.place}: {unknown[0]!r}", len(unknown))
        kept[item.video_id] = replace(item, scores=_finite_scores(item, manifest, problems))
    missing = [video_id for video_id in durations if video_id not in kept]
    _tell_missing(problems, "missing video: counts as background", missing)
    return list(kept.values())


def _finite_scores(item: FramePrediction, manifest: Manifest, problems: Problems) -> np.ndarray | StoredScores | None:
    if item.scores is None:
        return None
    shape = np.shape(item.scores) if not isinstance(item.scores, StoredScores) else item.scores.shape
    if len(shape) != 2 or shape[1] != len(manifest.classes):
        raise PredictionError(
            f"{item.place}: scores of {item.video_id} have shape {shape}, expected (frames, "
            f"{len(manifest.classes)}): one column per class of manifest {manifest.name!r}, in its order"
        )
    try:
        finite = np.isfinite(item.scores)
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise PredictionError(f"{item.place}: scores of {item.video_id} cannot be read ({error})") from None
    if finite.all():
        return item.scores
    problems.add("NaN or infinite score: counts as the lowest of its video", item.place, int((~finite).sum()))
    if isinstance(item.scores, StoredScores):
        return replace(item.scores, finite=True)
    return np.where(finite, item.scores, item.scores[finite].min() if finite.any() else 0.0)
