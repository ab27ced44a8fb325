"""Checks of predictions against the annotations they are scored with, and which of them can be scored.

Every kind of problem is recorded once, with its count and first place. What official code scores (detections of unknown
videos, reversed segments) is kept; what it cannot score or crashes on (numbers that are not finite, unknown labels and
queries) is left out. If nothing matches at all, the error says what would: other names, another split, another unit.
"""

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from unloc.annotations.reading import Problems
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.errors import PredictionError
from unloc.evaluation.rejection import answers_of
from unloc.evaluation.retrieval import Aligned, QueryKeys, align, is_answered, text_key
from unloc.evaluation.zero_shot import words_of
from unloc.predictions.records import DETECTION_COLUMNS, FramePrediction, MomentPrediction

Predictions = pd.DataFrame | Aligned | Sequence[FramePrediction]
NOT_FINITE = "NaN or infinite score or time: left out"
REVERSED = "reversed segment: scored unchanged"
REPEATED = "duplicate id: of several predictions the last counts"
EMPTY = "empty list: nothing predicted"
UNKNOWN_LABEL = "unknown label: left out"
REWRITES: dict[str, Callable[[str], object]] = {  # changes of names on both sides that may make them equal
    "removing v_": lambda name: name.removeprefix("v_"),
    "removing the folder and the file ending": lambda name: PurePath(name).stem,
    "folding case": lambda name: name.casefold().strip(),
    "reading _ as a blank": lambda name: name.replace("_", " "),
    "removing v_, folder, file ending and case": lambda name: PurePath(name).stem.removeprefix("v_").casefold(),
    "comparing only their words": lambda name: words_of(name) or name,
}


def other_unit(segments: np.ndarray, durations: np.ndarray) -> str | None:
    """The unit that segments (n, 2) seem to have in videos of `durations` (n,) seconds (NaN: unknown); None: none."""
    known = np.isfinite(durations) & (durations > 0)
    ends, durations = segments[known, 1], durations[known]
    if not len(ends):
        return None
    if 0 < ends.max() <= 1.0 and np.median(durations) > 5.0:  # in shorter videos such segments are plausible
        return "fractions of the video"
    shares = ends / durations
    if (shares > 1.05).mean() <= 0.5:
        return None
    # A second has 1000 milliseconds, but less than 100 frames.
    return "milliseconds" if np.quantile(shares, 0.9) > 100.0 else "frames"


def _add_unit(problems: Problems, segments: np.ndarray, durations: np.ndarray) -> None:
    if unit := other_unit(segments, durations):
        kind = f"segments look like {unit}, not seconds: scored unchanged"
        problems.add(kind, f"[{segments[0, 0]:g}, {segments[0, 1]:g}] in a video of {durations[0]:g} s", len(segments))


def screen_detections(detections: pd.DataFrame, manifest: Manifest, problems: Problems) -> pd.DataFrame:
    """Detections with finite numbers and known labels."""
    numbers, videos = detections[DETECTION_COLUMNS[2:]].to_numpy(dtype=np.float64), detections["video_id"]
    bad = ~np.isfinite(numbers).all(axis=1)
    unknown = ~detections["label"].isin(manifest.classes)
    unseen = "label without ground truth in this split: not scored"
    found = {
        NOT_FINITE: bad,
        REVERSED: ~bad & (numbers[:, 1] < numbers[:, 0]),
        "unknown video: its detections count as wrong": ~videos.isin(manifest.videos["video_id"]),
        UNKNOWN_LABEL: unknown,
        unseen: ~unknown & ~detections["label"].isin(manifest.instances["label"]),
    }
    for kind, rows in found.items():
        if rows.any():
            first = int(np.argmax(rows))
            video_id, label, start, end, score = detections.iloc[first][DETECTION_COLUMNS]
            place = f"results[{video_id!r}][{(videos[:first] == video_id).sum()}]"
            problems.add(kind, f"{place}: {label!r} [{start:g}, {end:g}] score {score:g}", int(rows.sum()))
    lengths = videos.map(manifest.stated_durations()).to_numpy(dtype=np.float64)
    _add_unit(problems, numbers[~bad, :2], lengths[~bad])
    predicted = set(videos)
    for video_id in manifest.videos["video_id"]:
        problems.add("missing video: counts as missed", video_id, video_id not in predicted)
    return detections[~(bad | unknown)].reset_index(drop=True)


def screen_labels(predictions: pd.DataFrame, manifest: Manifest, problems: Problems) -> pd.DataFrame:
    """Finite scores of known labels of whole videos."""
    found = {
        NOT_FINITE: ~np.isfinite(predictions["score"].to_numpy(dtype=np.float64)),
        UNKNOWN_LABEL: ~predictions["label"].isin(manifest.classes),
        "unknown video: left out": ~predictions["video_id"].isin(manifest.videos["video_id"]),
        "label twice in one video: the best score counts": predictions.duplicated(["video_id", "label"]),
    }
    for kind, rows in found.items():
        for video_id, label in predictions.loc[rows, ["video_id", "label"]].itertuples(index=False):
            problems.add(kind, f"results[{video_id!r}]: {label!r}")
    predicted = set(predictions["video_id"])
    for video_id in manifest.instances["video_id"].unique():
        problems.add("missing video: counts as wrong", video_id, video_id not in predicted)
    *left_out, _ = found.values()
    return predictions[~np.any(left_out, axis=0)].reset_index(drop=True)


def screen_moments(
    predictions: Sequence[MomentPrediction], manifest: Manifest, problems: Problems, *, rated: bool = False
) -> list[MomentPrediction]:
    """Predictions of known queries, without windows or saliency that are not finite. `rated`: saliency is scored too,
    so its problems are recorded.
    """
    keys, durations = QueryKeys(manifest), manifest.stated_durations()
    kept, seen, lengths = [], Counter(), []
    for item in predictions:
        place = f"{item.place}: qid {item.qid or 'not given'}, video {item.video_id}, query {item.query!r}"
        key = keys.of(item)
        if key is None:
            problems.add("unknown video or query: left out", place)
            continue
        video_id, text = keys.annotated.get(key, (item.video_id, item.query))
        kind = "qid with another video than annotated: matched by its qid"
        problems.add(kind, f"{place}, annotated {video_id}", video_id != item.video_id)
        kind = "query in other words than annotated: matched by its qid"
        differs = bool(item.query.strip()) and text_key(video_id, item.query) != text_key(video_id, text)
        problems.add(kind, f"{place}, annotated {text!r}", differs)
        seen[key] += 1
        problems.add(REPEATED, place, seen[key] > keys.counts.get(key, 1))
        finite, saliency = np.isfinite(item.windows).all(axis=1), item.saliency
        windows, duration = item.windows[finite], durations.get(video_id, np.nan)
        problems.add(NOT_FINITE, f"{place}: windows", int((~finite).sum()))
        problems.add(REVERSED, place, int((windows[:, 1] < windows[:, 0]).sum()))
        problems.add(EMPTY, place, not len(item.windows))
        kind = "windows not by falling score: moment_detr and 2d-tan take the first of the list, others the best"
        problems.add(kind, place, bool((np.diff(windows[:, 2]) > 0).any()))
        if saliency is not None and not np.isfinite(saliency).all():
            problems.add("NaN or infinite saliency: the whole list is left out", place)
            saliency = None
        kept.append(replace(item, windows=windows, saliency=saliency))
        lengths.append(np.full(len(windows), duration))
        problems.add("no pred_saliency_scores: all clips rank equally", place, rated and saliency is None)
        if rated and saliency is not None and not np.isnan(duration):
            kind = "saliency is not one score per 2 s clip: cut, or padded with zeros, as officially"
            fits = int(duration / CLIP_SECONDS) <= len(saliency) <= np.ceil(duration / CLIP_SECONDS)
            problems.add(kind, f"{place}: {len(saliency)} scores in {duration:g} s", not fits)
    if kept:
        _add_unit(problems, np.concatenate([item.windows[:, :2] for item in kept]), np.concatenate(lengths))
    for (_, video_id, text), item in zip(keys.queries, align(kept, manifest), strict=True):
        problems.add("missing query: counts as missed", f"{video_id}: {text!r}", item is None)
    return kept


def screen_nulls(
    predictions: Sequence[MomentPrediction], manifest: Manifest, problems: Problems
) -> list[MomentPrediction]:
    """Predictions of known queries that may be null, without windows that are not finite; absent scores stay NaN. Those
    of a file in line order stay in their places. Raises PredictionError if these are more than the queries.
    """
    keys, durations, kept, lengths = QueryKeys(manifest), manifest.stated_durations(), [], []
    in_lines, seen, queries = any(item.by_line for item in predictions), Counter(), keys.queries
    if in_lines and len(predictions) > len(queries):
        counts = f"{len(predictions)} predictions for the {len(queries)} queries of this split"
        raise PredictionError(f"{predictions[len(queries)].place}: {counts}; NA-VMR pairs them line by line")
    for row, item in enumerate(predictions):
        place, key = f"{item.place}: qid {item.qid or 'not given'}, video {item.video_id}", keys.of(item)
        if in_lines:
            kind = "prediction of another video or query than at its place: scored there, as officially"
            stated = (item.video_id or queries[row][1], item.query or queries[row][2])
            problems.add(kind, place, text_key(*stated) != text_key(*queries[row][1:]))
            key = row
        elif key is None:
            problems.add("unknown query: left out", place)
            continue
        seen[key] += 1
        kind = "duplicate id: mAP joins the windows, as officially; elsewhere the last counts"
        problems.add(kind, place, seen[key] > keys.counts.get(key, 1))
        windows = item.windows[np.isfinite(item.windows[:, :2]).all(axis=1)]
        problems.add(NOT_FINITE, f"{place}: windows", len(item.windows) - len(windows))
        problems.add(REVERSED, place, int((windows[:, 1] < windows[:, 0]).sum()))
        kept.append(replace(item, windows=windows))
        lengths.append(np.full(len(windows), durations.get(item.video_id, np.nan)))
    if kept:
        _add_unit(problems, np.concatenate([item.windows[:, :2] for item in kept]), np.concatenate(lengths))
    for (_, video_id, text), found in zip(queries, answers_of(kept, manifest), strict=True):
        problems.add("missing query: counts nowhere, as officially", f"{video_id}: {text!r}", not found)
    return kept


def screen_frames(
    predictions: Sequence[FramePrediction], manifest: Manifest, problems: Problems
) -> list[FramePrediction]:
    """Predictions of known videos; scores that are not finite become the lowest of their video. Raises PredictionError
    if scores do not have one column per class of the manifest.
    """
    durations, kept = manifest.stated_durations(), {}
    for item in predictions:
        place, duration = f"{item.place}: {item.video_id}", durations.get(item.video_id)
        if duration is None:
            problems.add("unknown video: left out", place)
            continue
        problems.add(REPEATED, place, item.video_id in kept)
        problems.add(EMPTY, place, not item.labels)
        if item.labels and item.fps is not None and abs(len(item.labels) - duration * item.fps) > 1:
            kind = "more or fewer frames than the video has: cut, or filled with background"
            problems.add(kind, f"{place} has {len(item.labels)} labels")
        elif item.labels and item.fps is None and item.times_seconds[-1] > duration + 1.0:
            late = int((item.times_seconds >= duration).sum())
            kind = "label that begins after the end of its video: cut"
            problems.add(kind, f"{place} at {item.times_seconds[-1]:g} s", late)
        unknown = [name for name in item.labels if name is not None and name not in manifest.classes]
        if unknown:
            problems.add("unknown label: its frames count as wrong", f"{item.place}: {unknown[0]!r}", len(unknown))
        kept[item.video_id] = item
        if item.scores is None:
            continue
        if len(item.scores.shape) != 2 or item.scores.shape[1] != len(manifest.classes):
            expected = f"expected (frames, {len(manifest.classes)}): one column per class of manifest {manifest.name!r}"
            raise PredictionError(f"{place}: scores have shape {item.scores.shape}, {expected}, in its order")
        try:
            finite = np.isfinite(item.scores)
        except (ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise PredictionError(f"{place}: scores cannot be read ({error})") from None
        if not finite.all():
            problems.add("NaN or infinite score: counts as the lowest of its video", item.place, int((~finite).sum()))
            kept[item.video_id] = replace(item, scores=replace(item.scores, finite=True))
    for video_id in durations:
        problems.add("missing video: counts as background", video_id, video_id not in kept)
    return list(kept.values())


SCREENS: dict[str, Callable[..., Predictions]] = {"tal": screen_detections, "as": screen_frames, "cls": screen_labels}
SCREENS |= {"mr": screen_moments, "hd": partial(screen_moments, rated=True), "rejection": screen_nulls}
"""The predictions of a task that can be scored, by all of them, the selected manifest and where problems are logged."""


def require_match(
    path: Path, task: str, predictions: Predictions, screened: Predictions, manifest: Manifest, split: str
) -> None:
    """Raise PredictionError, with a hint, if no prediction of a file has a video, a query or a class of the split."""
    error, selected, hint = f"{path}: nothing matches:", manifest.select(split), ""
    is_query = task in ("mr", "hd", "rejection")
    if not len(predictions):
        raise PredictionError(f"{error} there are no predictions in it")
    if is_query and len(screened):
        if task == "rejection" or any(is_answered(item, task) for item in screened):
            return
        scored = "windows or saliency" if task == "hd" else "windows"
        raise PredictionError(f"{error} none of the {len(predictions)} predictions has {scored}")
    if task in ("tal", "cls"):
        videos, names = set(predictions["video_id"]), set(predictions["label"])
    else:
        videos = {item.video_id for item in predictions}
        names = {name for item in predictions for name in ([item.query] if is_query else item.labels)} - {None}
    what, given, known = "video ids", videos, set(selected.videos["video_id"])
    if videos & known:
        what = "queries" if is_query else "class names"
        given, known = names, set(selected.queries["text"] if is_query else selected.classes)
        if not is_query and (not given or given & known):
            return
    elif others := [name for name in manifest.splits if videos & set(manifest.select(name).videos["video_id"])]:
        hint = f"; they are videos of split {', '.join(others)}"
    different = given - known
    for change, rewrite in REWRITES.items():
        if not hint and set(map(rewrite, different)) & set(map(rewrite, known)):
            hint = f"; {what.removeprefix('video ')} match after {change}"
    where = f"split {split!r} of manifest {manifest.name!r} (first {min(known, default='')!r})"
    raise PredictionError(f"{error} none of the {len(given)} {what} (first {min(given)!r}) is in {where}{hint}")
