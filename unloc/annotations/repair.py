"""What becomes of bad rows: kept, repaired or dropped, only by the rule asked for, and every change is told.

    keep    nothing is changed: official scorers have their own ways with bad rows, and a manifest must let them
    repair  segments are cut to [0, duration]; ratings that cannot be meant are left out, durations that cannot be meant
            become unknown (extraction measures them); what cannot be repaired is dropped
    drop    segments, ratings and rows with an error are left out

Under both, of duplicates the first is kept, and a query goes only when none of its windows is left. Notes (ends that
pass the video by rounding, …) are cut by `repair` and kept by `drop`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from unloc.annotations.check import (
    NOTES,
    VideoKey,
    durations_of,
    place_problem,
    ratings_problem,
    segment_problem,
    video_problem,
)
from unloc.annotations.official import Repairs
from unloc.annotations.schema import Manifest
from unloc.errors import InputError, ManifestError

RULES = ("keep", "repair", "drop")
Settle = Callable[[list[float], VideoKey, str], list[float] | None]
"""A segment in (video, split), and its place, to what is kept of it."""


def apply_rule(manifest: Manifest, rule: str, told: Repairs) -> Manifest:
    """The manifest after the rule; every change goes to `told`.

    Raises InputError for another rule, ManifestError where no video is left.
    """
    if rule not in RULES:
        raise InputError(f"--bad-rows: got {rule!r}, expected one of {', '.join(RULES)}")
    if rule == "keep":
        return manifest
    classes = tuple(name for name in dict.fromkeys(manifest.classes) if name.strip())
    for _ in range(len(manifest.classes) - len(classes)):
        told.add("duplicate or empty class: dropped", "classes")
    manifest = replace(manifest, classes=classes, videos=_videos(manifest.videos, rule, told))
    if manifest.videos.empty:
        raise ManifestError(f"--bad-rows {rule}: no video of {manifest.name!r} is left")
    settle = _settler(durations_of(manifest), rule, told)
    queries = _queries(manifest, settle, told)
    instances = _instances(manifest, settle, told)
    return replace(manifest, queries=queries, instances=instances)


def _videos(videos: pd.DataFrame, rule: str, told: Repairs) -> pd.DataFrame:
    """Without repeats, and without (drop) or with unknown (repair) durations where they cannot be meant."""
    rows, seen = [], set()
    for row in videos.to_dict("records"):
        key, place = (row["video_id"], row["split"]), f"{row['video_id']} of {row['split']}"
        problem = video_problem(row["duration_seconds"])
        if key in seen:
            told.add("duplicate video: dropped", place)
        elif problem == "bad duration" and rule == "drop":
            told.add("bad duration: video dropped", place)
        else:
            if problem == "bad duration":
                told.add("bad duration: made unknown", place)
                row["duration_seconds"] = math.nan
            seen.add(key)
            rows.append(row)
    return pd.DataFrame(rows, columns=videos.columns).astype(videos.dtypes.to_dict())


def _settler(durations: dict[VideoKey, float], rule: str, told: Repairs) -> Settle:
    def settle(segment: list[float], key: VideoKey, place: str) -> list[float] | None:
        start, end = segment
        duration = durations.get(key, math.nan)
        problem = segment_problem(start, end, duration)
        if problem is None or (rule == "drop" and problem in NOTES):
            return segment
        start, end = max(start, 0.0), min(end, duration if duration > 0 else math.inf)
        if rule == "repair" and problem != "segment not finite" and end > start:
            told.add(f"{problem}: cut to the video", place)
            return [start, end]
        told.add(f"{problem}: dropped", place)
        return None

    return settle


def _queries(manifest: Manifest, settle: Settle, told: Repairs) -> pd.DataFrame:
    durations, splits = durations_of(manifest), frozenset(manifest.splits)
    rows, seen = [], set()
    for row in manifest.queries.to_dict("records"):
        key, place = (row["video_id"], row["split"]), f"{row['video_id']} of {row['split']}: query {row['qid']}"
        problem = place_problem(key, durations, splits)
        problem = problem or (None if row["text"].strip() else "empty text")
        if problem:
            told.add(f"{problem}: dropped", place)
            continue
        windows = _windows(row["segments"], key, place, settle, told)
        # Compared after the cut: two windows that pass the end may become one.
        identities = {(row["split"], row["qid"]), (*key, row["text"], tuple(map(tuple, windows)))}
        if row["segments"] and not windows:
            told.add("query without a window left: dropped", place)
        elif identities & seen:
            told.add("duplicate row or qid: dropped", place)
        else:
            seen |= identities
            rows.append(row | {"segments": windows} | _ratings(row, durations[key], place, told))
    return pd.DataFrame(rows, columns=manifest.queries.columns)


def _windows(
    segments: list[list[float]], key: VideoKey, place: str, settle: Settle, told: Repairs
) -> list[list[float]]:
    settled = [settle(segment, key, place) for segment in segments]
    kept = [tuple(window) for window in settled if window is not None]
    unique = [list(window) for window in dict.fromkeys(kept)]
    for _ in range(len(kept) - len(unique)):
        told.add("duplicate window: dropped", place)
    return unique


def _ratings(row: dict, duration: float, place: str, told: Repairs) -> dict:
    problem = ratings_problem(row["relevant_clip_ids"], row["saliency_scores"], duration)
    if problem is None:
        return {}
    told.add(f"{problem}: ratings left out", place)
    return {"relevant_clip_ids": None, "saliency_scores": None}


def _instances(manifest: Manifest, settle: Settle, told: Repairs) -> pd.DataFrame:
    durations, splits, classes = durations_of(manifest), frozenset(manifest.splits), frozenset(manifest.classes)
    rows, seen = [], set()
    for row in manifest.instances.to_dict("records"):
        key, place = (row["video_id"], row["split"]), f"{row['video_id']} of {row['split']}: {row['label']}"
        problem = place_problem(key, durations, splits)
        problem = problem or (None if row["label"] in classes else "unknown label")
        if problem:
            told.add(f"{problem}: dropped", place)
            continue
        kept = settle([row["start_seconds"], row["end_seconds"]], key, place)
        if kept is None:
            continue
        identity = (*key, row["label"], *kept)
        if identity in seen:
            told.add("duplicate row: dropped", place)
            continue
        seen.add(identity)
        rows.append(row | {"start_seconds": kept[0], "end_seconds": kept[1]})
    return pd.DataFrame(rows, columns=manifest.instances.columns)
