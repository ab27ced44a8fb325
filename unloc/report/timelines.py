"""The rows of timelines: for each query or class of a video where it is annotated and where it is predicted."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.evaluator import ALIGN, QUERY_TASKS
from unloc.evaluation.retrieval import ratings_of
from unloc.evaluation.screening import Predictions
from unloc.predictions.records import MomentPrediction

MOST_CLASSES = 20  # of a video that are predicted but not annotated
MOST_POINTS = 250  # of a curve
Key = tuple[str, str]  # video, and query or class


def rows_of(
    task: str,
    predictions: Predictions,
    manifest: Manifest | None,
    *,
    top: int,
    relevance: Mapping[Key, tuple[np.ndarray, np.ndarray]],
) -> dict[str, list[dict]]:
    """For every video its rows, with the `top` predictions of each; videos and queries in the order of the manifest,
    without one of the predictions; annotated classes first. `relevance`: times and values of curves to show.
    """
    found: dict[str, list[dict]] = {video_id: [] for video_id in manifest.videos["video_id"]} if manifest else {}
    make = _query_rows if task in QUERY_TASKS else _class_rows
    for video_id, row in make(task, predictions, manifest, top):
        truth = np.array([one for one in row["truth"] if one[1] > one[0]]).reshape(-1, 2)
        first = np.array([one[:2] for one in row["found"][:1]]).reshape(-1, 2)
        row["iou"] = float(overlap_over_union(first, truth).max(initial=0.0)) if len(truth) else None
        if (key := (video_id, row["text"])) in relevance:
            row["curves"].append(_curve("relevance", *relevance[key]))
        found.setdefault(video_id, []).append(row)
    for own in found.values() if task not in QUERY_TASKS else ():
        own.sort(key=lambda row: (not row["truth"], -max((one[2] or 0.0 for one in row["found"]), default=-math.inf)))
        del own[sum(bool(row["truth"]) for row in own) + MOST_CLASSES :]
    return found


def thinned(values: Sequence[float | None], most: int = MOST_POINTS) -> list[float]:
    """At most that many means of neighbouring values, of five digits; NaN where all are unknown."""
    known = np.array(values, dtype=np.float64)
    size = math.ceil(len(known) / most) or 1
    parts = [part[~np.isnan(part)] for part in np.array_split(known, range(size, len(known), size))]
    return [float(f"{part.mean():.5g}") if len(part) else math.nan for part in parts]


def _curve(name: str, times: np.ndarray, values: np.ndarray, step: float = 0.0) -> dict:
    """Values (n,) at times in seconds, or from each time on for `step` seconds."""
    most = len(times) if step else MOST_POINTS
    return {"name": name, "times": thinned(times, most), "values": thinned(values, most), "step": step}


def _row(text: str, windows: np.ndarray, top: int | None, **more: object) -> dict:
    """A row with the best `top` of windows (N, 3), whose scores may be NaN: unknown, then the longest are the best."""
    windows = windows[np.isfinite(windows[:, :2]).all(axis=1)]
    rank = np.where(np.isnan(windows[:, 2]), windows[:, 1] - windows[:, 0], windows[:, 2])
    best = windows[np.argsort(-rank, kind="stable")][:top].tolist()
    found = [[round(start, 3), round(end, 3), None if math.isnan(score) else score] for start, end, score in best]
    row = {"text": text, "found": found, "more": len(windows) - len(best), "existence": None, "absent": False}
    return row | {"truth": [], "curves": []} | more


def _query_rows(
    task: str, predictions: Sequence[MomentPrediction], manifest: Manifest | None, top: int
) -> Iterator[tuple[str, dict]]:
    queries = [(item.video_id, item.query or f"qid {item.qid}", []) for item in predictions]
    answers: Sequence = predictions
    rated: Sequence = [None] * len(predictions)
    if manifest is not None:
        queries = manifest.queries[["video_id", "text", "segments"]].itertuples(index=False, name=None)
        answers = ALIGN[task](predictions, manifest)
        rated = ratings_of(manifest) if task == "hd" else [None] * len(answers)
    for (video_id, text, segments), item, ratings in zip(queries, answers, rated, strict=True):
        stated = {"truth": segments, "absent": task == "rejection" and not segments, "curves": []}
        if task == "rejection" and manifest is not None:
            item = item[-1] if item else None
        if item is not None:
            stated["existence"] = item.existence
            if item.saliency is not None:
                times = np.arange(len(item.saliency)) * CLIP_SECONDS
                stated["curves"].append(_curve("saliency", times, item.saliency, CLIP_SECONDS))
        if ratings is not None and len(ratings):
            times = np.arange(len(ratings)) * CLIP_SECONDS
            name = f"annotated saliency, mean of {ratings.shape[1]} raters"
            stated["curves"].append(_curve(name, times, ratings.mean(axis=1), CLIP_SECONDS) | {"range": [0, 4]})
        yield video_id, _row(text, np.zeros((0, 3)) if item is None else item.windows, top, **stated)


def _class_rows(
    task: str, predictions: Predictions, manifest: Manifest | None, top: int | None
) -> Iterator[tuple[str, dict]]:
    windows, truth, curves = defaultdict(list), defaultdict(list), defaultdict(list)
    if manifest is not None:
        columns = manifest.instances[["video_id", "label", "start_seconds", "end_seconds"]]
        for video_id, label, *segment in columns.itertuples(index=False, name=None):
            truth[video_id, label].append(segment)
    if task == "as":
        top, durations = None, manifest.stated_durations() if manifest else {}
        for item in predictions:
            duration = durations.get(item.video_id, 0.0)
            for label, *segment in item.segments(duration):
                windows[item.video_id, label].append((*segment, math.nan))
            scores, times = None if manifest is None else item.scores, item.edges(duration)[:-1]
            if scores is not None and scores.shape == (len(times), len(manifest.classes)):
                for label, column in zip(manifest.classes, np.asarray(scores).T, strict=True):
                    if (key := (item.video_id, label)) in windows or key in truth:
                        curves[key].append(_curve("frame score", times, column))
    else:
        for video_id, label, *window in predictions.itertuples(index=False, name=None):
            windows[video_id, label].append(window)
    for key in dict.fromkeys([*truth, *windows]):
        video_id, label = key
        found = np.array(windows.get(key, []), dtype=np.float64).reshape(-1, 3)
        yield video_id, _row(label, found, top, truth=truth.get(key, []), curves=curves.get(key, []))
