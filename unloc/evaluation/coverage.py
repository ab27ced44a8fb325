"""Which annotated videos and queries have a prediction, and the manifest without those that have none."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.evaluation.retrieval import align
from unloc.predictions.records import FramePrediction, MomentPrediction


def coverage(manifest: Manifest, predictions: pd.DataFrame | Sequence, task: str) -> dict:
    """Counts of annotated and predicted videos (and queries), and the ids of the videos without prediction.

    An empty list is no prediction; for hd saliency without windows is one.
    """
    if task in ("mr", "hd"):
        annotated = list(dict.fromkeys(manifest.queries["video_id"]))
    else:
        annotated = list(dict.fromkeys([*manifest.instances["video_id"], *manifest.videos["video_id"]]))
    answered = _answered(manifest, predictions, task)
    predicted = _predicted_videos(manifest, predictions, task, answered)
    missing = [video_id for video_id in annotated if video_id not in predicted]
    report = {
        "videos_annotated": len(annotated),
        "videos_predicted": len(annotated) - len(missing),
        "missing": missing,
    }
    if answered is not None:
        report |= {"queries_annotated": len(answered), "queries_predicted": int(answered.sum())}
    return report


def without_missing(manifest: Manifest, predictions: pd.DataFrame | Sequence, task: str) -> Manifest:
    """The manifest without the videos, for mr and hd without the queries, that have no prediction."""
    answered = _answered(manifest, predictions, task)
    if answered is not None:
        return replace(manifest, queries=manifest.queries[answered].reset_index(drop=True))
    predicted = _predicted_videos(manifest, predictions, task, None)
    parts = {key: getattr(manifest, key) for key in ("videos", "instances")}
    return replace(manifest, **{key: table[table["video_id"].isin(predicted)] for key, table in parts.items()})


def _answered(manifest: Manifest, predictions: pd.DataFrame | Sequence, task: str) -> np.ndarray | None:
    """(queries,) whether each has a prediction; None for tasks without queries."""
    if task not in ("mr", "hd"):
        return None
    return np.array([_says_something(item, task) for item in align(predictions, manifest)], dtype=bool)


def _says_something(item: MomentPrediction | None, task: str) -> bool:
    return item is not None and (len(item.windows) > 0 or (task == "hd" and item.saliency is not None))


def _predicted_videos(
    manifest: Manifest,
    predictions: pd.DataFrame | Sequence[FramePrediction],
    task: str,
    answered: np.ndarray | None,
) -> set[str]:
    if answered is not None:
        return set(manifest.queries["video_id"][answered])
    if task == "tal":
        return set(predictions["video_id"])
    return {item.video_id for item in predictions if len(item.labels)}
