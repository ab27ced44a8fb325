"""One call for all tasks: metrics, floors and coverage, as they stand in metrics.json."""

from collections.abc import Sequence

import pandas as pd

from unloc.data.predictions import FramePrediction, MomentPrediction
from unloc.data.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.detection import ACTIVITYNET_THRESHOLDS, THUMOS_THRESHOLDS, detection
from unloc.evaluation.floors import detection_floors, frame_floors, moment_floors
from unloc.evaluation.highlight import highlight_detection
from unloc.evaluation.retrieval import PROTOCOLS, moment_retrieval, qvhighlights_moments
from unloc.evaluation.segmentation import action_segmentation

Predictions = pd.DataFrame | Sequence[MomentPrediction] | Sequence[FramePrediction]
TASK_PROTOCOLS = {"tal": ("activitynet", "thumos14"), "mr": PROTOCOLS, "hd": ("qvhighlights",), "as": ("coin",)}


def default_protocol(task: str, manifest: Manifest) -> str:
    """The protocol that papers quote for this dataset."""
    if task == "tal" and "thumos" in manifest.name.lower():
        return "thumos14"
    return TASK_PROTOCOLS[task][0]


def score(task: str, predictions: Predictions, manifest: Manifest, protocol: str | None = None) -> dict[str, float]:
    """The task's metrics in percent, by name, on an already selected manifest.

    Raises InputError for a protocol that the task does not have.
    """
    protocol = protocol or default_protocol(task, manifest)
    if protocol not in TASK_PROTOCOLS[task]:
        raise InputError(f"--protocol: got {protocol!r} for {task}, expected one of {', '.join(TASK_PROTOCOLS[task])}")
    if task == "tal":
        return detection(predictions, manifest, THUMOS_THRESHOLDS if protocol == "thumos14" else ACTIVITYNET_THRESHOLDS)
    if task == "as":
        return action_segmentation(predictions, manifest)
    rated = manifest.queries["saliency_scores"].map(lambda scores: isinstance(scores, list)).any()
    metrics = moment_retrieval(predictions, manifest, protocol if task == "mr" else "raw")
    if rated:  # QVHighlights: the official names beside the common ones
        metrics |= qvhighlights_moments(predictions, manifest)
    if task == "hd":
        metrics |= highlight_detection(predictions, manifest)
    return metrics


def evaluate(
    task: str,
    predictions: Predictions,
    manifest: Manifest,
    split: str,
    *,
    train_split: str | None = None,
    protocol: str | None = None,
) -> dict:
    """metrics.json: the metrics of one split with floors fitted on `train_split` and coverage.

    Without a training split in the manifest the constants are fitted on the evaluated split itself, and the floors'
    names say so. Raises MissingError for a split that does not exist.
    """
    selected = manifest.select(split)
    train = manifest.select(train_split) if train_split in manifest.splits else None
    floors = {
        name if train is not None or name in ("whole_video", "all_background") else f"{name}_fitted_on_{split}": values
        for name, values in floor_scores(task, selected, train or selected, predictions, protocol).items()
    }
    return {
        "task": task,
        "split": split,
        "manifest": manifest.name,
        "protocol": protocol or default_protocol(task, manifest),
        "num_videos": int(selected.videos["video_id"].nunique()),
        "num_queries": len(selected.queries),
        "num_instances": len(selected.instances),
        "metrics": score(task, predictions, selected, protocol),
        "floors": floors,
        "intervals": {},
        "coverage": coverage(selected, predictions),
        "external_labels": False,
    }


def floor_scores(
    task: str, manifest: Manifest, train: Manifest, predictions: Predictions, protocol: str | None = None
) -> dict[str, dict[str, float]]:
    """Metrics of every blind floor."""
    if task == "tal":
        floors = detection_floors(manifest, train)
    elif task == "as":
        fps = predictions[0].fps if len(predictions) else 1.0
        floors = frame_floors(manifest, fps)
    else:
        floors = moment_floors(manifest, train)
    return {name: score(task, constant, manifest, protocol) for name, constant in floors.items()}


def coverage(manifest: Manifest, predictions: Predictions) -> dict:
    """Which annotated videos have predictions."""
    annotated = list(dict.fromkeys([*manifest.queries["video_id"], *manifest.instances["video_id"]]))
    if isinstance(predictions, pd.DataFrame):
        predicted = set(predictions["video_id"])
    else:
        predicted = {item.video_id for item in predictions}
    missing = [video_id for video_id in annotated if video_id not in predicted]
    return {
        "videos_annotated": len(annotated),
        "videos_predicted": len(annotated) - len(missing),
        "missing": missing,
    }
