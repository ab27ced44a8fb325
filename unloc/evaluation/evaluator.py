"""One call for all tasks: metrics, floors, intervals and coverage as in metrics.json."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.classification import LabelScores
from unloc.evaluation.detection import DetectionScores
from unloc.evaluation.floors import FLOORS, annotated_segments, frame_floors
from unloc.evaluation.protocols import Protocol, is_rated, protocol_for
from unloc.evaluation.rejection import answers_of, rejection_scores
from unloc.evaluation.retrieval import QueryScores, align, is_answered, official_report, query_scores
from unloc.evaluation.screening import Predictions, other_unit
from unloc.evaluation.segmentation import FrameScores, frame_scores

logger = logging.getLogger(__name__)
Scores = DetectionScores | FrameScores | LabelScores | QueryScores
ALIGN = {"mr": align, "hd": align, "rejection": answers_of}
QUERY_TASKS = tuple(ALIGN)
"""Tasks of queries, and how predictions are put in the order of the manifest. `rejection` is mr with null queries."""
SCORES = {"tal": DetectionScores, "as": frame_scores, "cls": LabelScores, "mr": query_scores}
SCORES["rejection"] = rejection_scores
SCORES["hd"] = partial(query_scores, rated=True)
"""What all metrics and intervals of a task are computed from, by predictions (of queries: `ALIGN`), the selected
manifest and the protocol."""
MOST_OUTSIDE = 0.1  # share of segments; official files have a few of videos that were cut since


def annotated_queries(task: str, queries: pd.DataFrame) -> pd.Series:
    """Which queries have segments, or for hd ratings; the annotations of the others are hidden."""
    shown = queries["segments"].map(len) > 0
    if task == "hd":
        shown |= queries["saliency_scores"].map(lambda scores: isinstance(scores, list))
    return shown


def without_hidden(task: str, selected: Manifest) -> Manifest:
    """Without the queries that have no annotations."""
    return replace(selected, queries=selected.queries[annotated_queries(task, selected.queries)].reset_index(drop=True))


def has_annotations(task: str, selected: Manifest) -> bool:
    """Whether the split has annotations to score the task with."""
    if task == "hd":
        return is_rated(selected)
    is_query = task in QUERY_TASKS
    return bool(annotated_queries(task, selected.queries).any()) if is_query else len(selected.instances) > 0


def require_annotations(
    task: str,
    selected: Manifest,
    split: str,
    way_out: str = "--export FILE writes predictions without scoring them",
    *,
    are_null: bool = False,
) -> None:
    """Raise InputError if the split has no annotations for the task (hidden, or of another one), or not in seconds.
    Queries without annotations are told, unless they `are_null`.
    """
    where = f"split {split!r} of manifest {selected.name!r}"
    if not has_annotations(task, selected):
        named = dict.fromkeys(QUERY_TASKS, "queries with segments") | {"hd": "queries with ratings", "cls": "labels"}
        problem = f"{where} has no {named.get(task, 'labelled segments')} for {task}"
        hint = f"the manifest has annotations for {', '.join(selected.tasks)}"
        raise InputError(f"{problem}; {hint}; are the annotations of this split hidden? {way_out}")
    num_hidden = int((~annotated_queries(task, selected.queries)).sum()) if task in ("mr", "hd") else 0
    if num_hidden and not are_null:
        hint = "not used in training without data.null_queries=true; scored as the protocol says, with "
        hint += "unloc eval --rejection as null queries"
        counts = f"{num_hidden} of {len(selected.queries)} queries"
        logger.warning("%s: %s have no annotations: %s", where, counts, hint)
    require_seconds(task, selected, split, selected.stated_durations())


def require_seconds(task: str, selected: Manifest, split: str, durations: Mapping[str, float]) -> None:
    """Raise InputError if segments are in another unit, or more than `MOST_OUTSIDE` of them lie outside their videos.
    `durations` are in seconds (NaN or no entry: unknown). Fewer segments outside are logged as a warning.
    """
    if task == "cls":  # of whole videos
        return
    table = annotated_segments(selected)
    table = table[(table["label"] == "") == (task in QUERY_TASKS)]
    segments = table[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    lengths = table["video_id"].map(durations).to_numpy(dtype=np.float64)
    unit = other_unit(segments, lengths)
    outside = ~((segments[:, 0] < np.where(np.isnan(lengths), np.inf, lengths)) & (segments[:, 1] > 0))
    if not unit and not outside.any():
        return
    first = int(np.argmax(outside))
    segment = f"[{segments[first, 0]:g}, {segments[first, 1]:g}] in {lengths[first]:g} s"
    segment = f"line {table['line'].iloc[first]}: {segment} of {table['video_id'].iloc[first]}"
    counts = f"{int(outside.sum())} of {len(outside)} segments lie wholly outside their videos ({segment})"
    found = f"split {split!r} of manifest {selected.name!r}: {counts}"
    if unit or outside.mean() > MOST_OUTSIDE:
        guess = f"; segments look like {unit}" if unit else ""
        raise InputError(f"{found}{guess}; a manifest states seconds: convert it again, see `unloc data check`")
    logger.warning("%s: nothing can be learned or found there", found)


def scores_of(task: str, predictions: Predictions, manifest: Manifest, protocol: str | None = None) -> Scores:
    """What a task's metrics are computed from, on a selected manifest. Raises InputError as `protocol_for`."""
    aligned = ALIGN[task](predictions, manifest) if task in ALIGN else predictions
    return SCORES[task](aligned, manifest, protocol_for(task, protocol, manifest))


def score(task: str, predictions: Predictions, manifest: Manifest, protocol: str | None = None) -> dict[str, float]:
    """The task's metrics in percent, by name, on an already selected manifest. Raises InputError as `protocol_for`."""
    return scores_of(task, predictions, manifest, protocol).metrics()


def evaluate(
    task: str,
    predictions: Predictions | None,
    manifest: Manifest,
    split: str,
    *,
    train_split: str | None = None,
    protocol: str | None = None,
    interval_seed: int | None = None,
) -> dict:
    """metrics.json: the metrics of one split with floors, intervals (if a seed is given) and coverage; without
    predictions the floors alone.

    Floors are fitted on `train_split`; where the manifest has it not, on the evaluated split, and their names say so.
    Raises MissingError for no such split, InputError for a protocol that the task does not have, or where a metric or
    floor needs unknown durations.
    """
    selected = manifest.select(split)
    rules = protocol_for(task, protocol, selected)
    report = header(task, selected, split, rules)
    has_train = train_split in manifest.splits
    train = manifest.select(train_split) if has_train else selected
    constants = frame_floors(selected, predictions) if task == "as" else FLOORS[task](selected, train)
    floors = {}
    for name, constant in constants.items():
        fitted = f"_fitted_on_{split}" if name.startswith(("blind", "constant")) and not has_train else ""
        floors[name + fitted] = SCORES[task](constant, selected, rules).metrics()
    if predictions is None:
        return report | {"floors": floors}
    aligned = ALIGN[task](predictions, selected) if task in ALIGN else predictions
    scores = SCORES[task](aligned, selected, rules)
    metrics = scores.metrics()
    report |= {"metrics": metrics, "per_class": {} if task in QUERY_TASKS else scores.per_class(), "floors": floors}
    report["intervals"] = {} if interval_seed is None else bootstrap_intervals(scores, metrics, interval_seed)
    report["coverage"] = coverage(task, aligned, selected, rules)
    return report | ({"official": official_report(metrics)} if task in ("mr", "hd") and rules.ranges else {})


def header(task: str, selected: Manifest, split: str, rules: Protocol) -> dict:
    """What metrics.json says about the annotations and rules of a score."""
    return {
        "task": "mr" if task == "rejection" else task,
        "split": split,
        "manifest": selected.name,
        "source": selected.source,
        "protocol": rules.name,
        "tie_rule": rules.tie_rule,
        "num_videos": int(selected.videos["video_id"].nunique()),
        "num_queries": len(selected.queries),
        "num_instances": len(selected.instances),
    }


def bootstrap_intervals(scores: Scores, metrics: dict[str, float], seed: int) -> dict[str, list[float]]:
    """95 % intervals: [2.5 %, 97.5 %] of all `metrics` of the scores, in percent over the draws that define each.

    Videos are drawn with replacement, as many as there are; each draw only weights what was matched within the videos.
    The spread of the draws is centred on the score: mAP of copied videos is biased upwards (fewer distinct videos, and
    precision is made monotone), on ActivityNet by 2 points, so plain percentiles would not contain the score.
    """
    num_videos, intervals = scores.num_videos, {}
    if not num_videos:
        return {}
    counts = np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1.0 / num_videos), size=1000)
    for name, column in scores.drawn(counts).items():
        defined = column[np.isfinite(column)]
        if len(defined) and np.isfinite(metrics[name]):
            ends = np.percentile(defined, (2.5, 97.5)) - defined.mean() + metrics[name]
            intervals[name] = np.clip(ends, 0.0, 100.0).tolist()
    return intervals


def coverage(task: str, predictions: Predictions, selected: Manifest, rules: Protocol) -> dict:
    """Counts of annotated and predicted videos (and queries), the missing videos, and the metrics without them."""
    counts: dict[str, int] = {}
    if task in QUERY_TASKS:
        is_found = bool if task == "rejection" else partial(is_answered, task=task)
        answered = np.array([is_found(item) for item in predictions], dtype=bool)
        counts = {"queries_annotated": len(answered), "queries_predicted": int(answered.sum())}
        annotated, predicted = selected.queries["video_id"], selected.queries["video_id"][answered]
    elif task == "as":
        annotated = [*selected.instances["video_id"], *selected.videos["video_id"]]
        predicted = [item.video_id for item in predictions if len(item.labels)]
    else:
        annotated = [*selected.instances["video_id"], *(selected.videos["video_id"] if task == "tal" else ())]
        predicted = predictions["video_id"]
    annotated, predicted = dict.fromkeys(annotated), set(predicted)
    missing = [video_id for video_id in annotated if video_id not in predicted]
    num_predicted = len(annotated) - len(missing)
    report = {"videos_annotated": len(annotated), "videos_predicted": num_predicted, "missing": missing, **counts}
    if task == "rejection":  # as officially, the missing count nowhere
        return report | {"existence_stated": sum(found[-1].existence is not None for found in predictions if found)}
    if not missing and len(set(counts.values())) < 2:
        return report
    present = selected.filter(lambda table: table["video_id"].isin(predicted))
    if task in QUERY_TASKS:
        present = replace(selected, queries=selected.queries[answered])
        predictions = [item for item in predictions if is_answered(item, task)]
    return report | {"metrics_without_missing": SCORES[task](predictions, present, rules).metrics()}
