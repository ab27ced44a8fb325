"""One call for all tasks: metrics, floors, intervals and coverage, as they stand in metrics.json."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from unloc.annotations.durations import stated_durations
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation import retrieval, segmentation
from unloc.evaluation.bootstrap import detection_intervals, frame_intervals, query_intervals
from unloc.evaluation.coverage import coverage, without_missing
from unloc.evaluation.detection import PROTOCOLS as DETECTION_PROTOCOLS
from unloc.evaluation.detection import detection, detection_by_class, kept_truth, num_absent_classes, protocol_named
from unloc.evaluation.floors import background_floors, detection_floors, frame_floors, moment_floors
from unloc.evaluation.highlight import highlight_values
from unloc.evaluation.matching import match_detections
from unloc.evaluation.mismatch import other_unit
from unloc.evaluation.qvhighlights import LIGHTHOUSE_RANGES, official_report, qvhighlights_values
from unloc.evaluation.rows import QueryValues
from unloc.evaluation.ties import tie_spans
from unloc.predictions.records import FramePrediction, MomentPrediction
from unloc.tasks import task_named

logger = logging.getLogger(__name__)
Predictions = pd.DataFrame | Sequence[MomentPrediction] | Sequence[FramePrediction]
TASK_PROTOCOLS = {
    "tal": tuple(DETECTION_PROTOCOLS),
    "mr": tuple(retrieval.PROTOCOLS),
    "hd": ("moment_detr",),
    "as": tuple(segmentation.PROTOCOLS),
}
LATER_FIRST = "of equal scores the later entry of the file goes first"
MOST_OUTSIDE = 0.1  # share of segments; official files have a few for videos that were cut since
TIE_RULES = {
    **dict.fromkeys(DETECTION_PROTOCOLS, LATER_FIRST),
    **{
        name: LATER_FIRST if rules.by_score else "the order of the file counts, not the score"
        for name, rules in retrieval.PROTOCOLS.items()
    },
    **dict.fromkeys(
        ("moment_detr", "lighthouse", "lighthouse-raw"),
        "R1, R5, R10, mIoU, MR-R1: the order of the file counts, not the score; MR-mAP: of equal scores the earlier "
        "entry goes first; HL-: of equal clips the first is the best, AP takes ties as one",
    ),
}
FRAME_TIE_RULE = "mAP takes frames of equal score as one step; accuracy takes the labels of the file"


def default_protocol(task: str, manifest: Manifest) -> str:
    """The protocol that papers quote for this dataset."""
    if task == "tal" and "thumos" in manifest.name.lower():
        return "thumos14"
    if task == "mr" and _is_rated(manifest):
        return "moment_detr"
    return TASK_PROTOCOLS[task][0]


def default_train_split(manifest: Manifest, split: str) -> str | None:
    """The split that models of this dataset are trained on: THUMOS14 has no other than `validation`."""
    names = [name for name in ("train", "training", "validation") if name in manifest.splits and name != split]
    return names[0] if names else None


def annotated_queries(task: str, queries: pd.DataFrame) -> pd.Series:
    """Which queries have segments, or for hd ratings; the annotations of the others are hidden."""
    shown = queries["segments"].map(len) > 0
    if task == "hd":
        shown |= queries["saliency_scores"].map(lambda scores: isinstance(scores, list))
    return shown


def has_annotations(task: str, selected: Manifest) -> bool:
    """Whether the split holds something to score the task with."""
    if task == "hd":
        return _is_rated(selected)
    return bool(selected.queries["segments"].map(len).sum()) if task == "mr" else len(selected.instances) > 0


def require_annotations(
    task: str, selected: Manifest, split: str, way_out: str = "--export FILE writes predictions without scoring them"
) -> None:
    """Raise InputError where the split holds nothing for the task (hidden, or of another one), or not in seconds."""
    if not has_annotations(task, selected):
        wanted = {"mr": "queries with segments", "hd": "queries with ratings"}.get(task, "labelled segments")
        raise InputError(
            f"split {split!r} of manifest {selected.name!r} has no {wanted} for {task}; the manifest serves "
            f"{', '.join(selected.tasks)}; are the annotations of this split hidden? {way_out}"
        )
    num_hidden = 0 if task in ("tal", "as") else int((~annotated_queries(task, selected.queries)).sum())
    if num_hidden:
        told = f"split {split!r} of manifest {selected.name!r}: {num_hidden} of {len(selected.queries)} queries"
        logger.warning("%s have no annotations: they do not train, and score as the protocol says", told)
    require_seconds(task, selected, split, stated_durations(selected))


def require_seconds(task: str, selected: Manifest, split: str, durations: Mapping[str, float]) -> None:
    """Raise InputError where segments are in another unit, or more than `MOST_OUTSIDE` of them lie wholly outside
    their videos, which last `durations` seconds (NaN or no entry: unknown). Fewer are told in a warning.
    """
    if task_named(task).text_kind == "query":
        table = selected.queries.explode("segments").dropna(subset=["segments"])
        segments = np.asarray(table["segments"].tolist(), dtype=np.float64).reshape(-1, 2)
    else:
        table = selected.instances
        segments = table[["start_seconds", "end_seconds"]].to_numpy(dtype=np.float64)
    lengths = table["video_id"].map(durations).to_numpy(dtype=np.float64)
    unit = other_unit(segments, lengths)
    outside = ~((segments[:, 0] < np.where(np.isnan(lengths), np.inf, lengths)) & (segments[:, 1] > 0))
    if not unit and not outside.any():
        return
    first = int(np.argmax(outside)) if outside.any() else 0
    start, end = segments[first]
    told = (
        f"split {split!r} of manifest {selected.name!r}: {int(outside.sum())} of {len(outside)} segments lie wholly "
        f"outside their videos (line {table['line'].iloc[first]}: [{start:g}, {end:g}] in {lengths[first]:g} s of "
        f"{table['video_id'].iloc[first]})"
    )
    if unit or outside.mean() > MOST_OUTSIDE:
        guess = f"; segments look like {unit}" if unit else ""
        raise InputError(f"{told}{guess}; a manifest states seconds: convert it again, see `unloc data check`")
    logger.warning("%s: nothing can be learned or found there", told)


def _is_rated(manifest: Manifest) -> bool:
    return bool(manifest.queries["saliency_scores"].map(lambda scores: isinstance(scores, list)).any())


def score(task: str, predictions: Predictions, manifest: Manifest, protocol: str | None = None) -> dict[str, float]:
    """The task's metrics in percent, by name, on an already selected manifest.

    Raises InputError for a protocol that the task does not have.
    """
    protocol = checked_protocol(task, manifest, protocol)
    if task == "tal":
        return detection(predictions, manifest, protocol)
    if task == "as":
        return segmentation.action_segmentation(predictions, manifest, protocol)
    return query_values(task, predictions, manifest, protocol).means()


def checked_protocol(task: str, manifest: Manifest, protocol: str | None) -> str:
    """The named protocol, or the default one. Raises InputError where the task does not have it."""
    protocol = protocol or default_protocol(task, manifest)
    if protocol not in TASK_PROTOCOLS[task]:
        raise InputError(f"--protocol: got {protocol!r} for {task}, expected one of {', '.join(TASK_PROTOCOLS[task])}")
    return protocol


def query_values(task: str, predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str) -> QueryValues:
    """Metrics of mr and hd for every query; by moment_detr and lighthouse the official names beside the common ones."""
    values = retrieval.retrieval_values(predictions, manifest, protocol)
    if protocol == "moment_detr":
        values = values.joined(qvhighlights_values(predictions, manifest))
    elif protocol in ("lighthouse", "lighthouse-raw"):
        clamp = protocol == "lighthouse"
        values = values.joined(qvhighlights_values(predictions, manifest, LIGHTHOUSE_RANGES, clamp=clamp))
    return values.joined(highlight_values(predictions, manifest)) if task == "hd" else values


def intervals(
    task: str, predictions: Predictions, manifest: Manifest, protocol: str | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """95 % bootstrap intervals over videos of every metric, in percent."""
    protocol = checked_protocol(task, manifest, protocol)
    if task == "as":
        return frame_intervals(segmentation.video_frames(predictions, manifest, protocol), seed)
    if task != "tal":
        return query_intervals(query_values(task, predictions, manifest, protocol), seed)
    rules = protocol_named(protocol)
    matches = match_detections(predictions, kept_truth(manifest.instances, rules), rules.thresholds)
    num_videos = max(manifest.videos["video_id"].nunique(), len(matches.videos))
    return detection_intervals(matches, rules, num_videos, num_absent_classes(matches, manifest, rules), seed)


def evaluate(
    task: str,
    predictions: Predictions,
    manifest: Manifest,
    split: str,
    *,
    train_split: str | None = None,
    protocol: str | None = None,
    interval_seed: int | None = None,
    external_labels: bool = False,
) -> dict:
    """metrics.json: the metrics of one split with floors fitted on `train_split`, intervals and coverage.

    Without a training split in the manifest the constants are fitted on the evaluated split itself, and the floors'
    names say so. Intervals are drawn where a seed is given. Raises MissingError for a split that does not exist,
    InputError for a protocol that the task does not have, or where a metric or floor needs durations that are unknown.
    """
    selected = manifest.select(split)
    protocol = checked_protocol(task, selected, protocol)
    by_class: dict[str, dict[str, float]] = {}
    if task == "tal":
        metrics, by_class = detection_by_class(predictions, selected, protocol)
    elif task == "as":
        frames = segmentation.video_frames(predictions, selected, protocol)
        metrics, precision = segmentation.metrics_and_precision(frames)
        by_class = {
            name: {"AP": 100.0 * float(value)}
            for name, value in zip(selected.classes, precision, strict=False)
            if np.isfinite(value)
        }
    else:
        metrics = score(task, predictions, selected, protocol)
    covered = coverage(selected, predictions, task)
    unanswered = len(covered["missing"]) or covered.get("queries_predicted") != covered.get("queries_annotated")
    if unanswered:
        rest = without_missing(selected, predictions, task)
        covered["metrics_without_missing"] = score(task, predictions, rest, protocol)
    drawn = {} if interval_seed is None else intervals(task, predictions, selected, protocol, seed=interval_seed)
    report = {
        **header(task, selected, split, protocol),
        "metrics": metrics,
        "per_class": by_class,
        "tie_spans": tie_spans(predictions, selected, metrics, protocol) if task == "mr" else {},
        "floors": floor_scores(task, manifest, split, train_split, protocol, predictions),
        "intervals": drawn,
        "coverage": covered,
        "external_labels": external_labels,
    }
    if protocol in ("moment_detr", "lighthouse", "lighthouse-raw"):
        report["official"] = official_report(metrics)
    return report


def header(task: str, selected: Manifest, split: str, protocol: str | None) -> dict:
    """What metrics.json says of the annotations and rules of a score. Raises InputError as `checked_protocol`."""
    protocol = checked_protocol(task, selected, protocol)
    return {
        "task": task,
        "split": split,
        "manifest": selected.name,
        "source": selected.source,
        "protocol": protocol,
        "tie_rule": FRAME_TIE_RULE if task == "as" else TIE_RULES[protocol],
        "num_videos": int(selected.videos["video_id"].nunique()),
        "num_queries": len(selected.queries),
        "num_instances": len(selected.instances),
    }


def floors_report(
    task: str, manifest: Manifest, split: str, *, train_split: str | None = None, protocol: str | None = None
) -> dict:
    """metrics.json without predictions: the floors alone. Raises as `evaluate`."""
    selected = manifest.select(split)
    protocol = checked_protocol(task, selected, protocol)
    return header(task, selected, split, protocol) | {
        "floors": floor_scores(task, manifest, split, train_split, protocol)
    }


def floor_scores(
    task: str,
    manifest: Manifest,
    split: str,
    train_split: str | None,
    protocol: str,
    predictions: Predictions | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of every blind floor; of action segmentation on the predictions' frames, without at the usual rates."""
    selected = manifest.select(split)
    train = manifest.select(train_split) if train_split in manifest.splits else None
    if task == "tal":
        floors = detection_floors(selected, train or selected)
    elif task == "as":
        floors = frame_floors(predictions) if predictions else background_floors(selected)
    else:
        floors = moment_floors(selected, train or selected)
    return {
        name if train is not None or not name.startswith(("blind", "constant")) else f"{name}_fitted_on_{split}": score(
            task, constant, selected, protocol
        )
        for name, constant in floors.items()
    }
