"""Bad rows of a manifest: every kind that is known, with file and line. Nothing is changed here."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.data.locate import locate_videos
from unloc.data.schema import CLIP_SECONDS, Manifest
from unloc.errors import InputError

END_TOLERANCE_SECONDS = 0.01  # ends that pass the video by less are rounding
RULES = ("keep", "repair", "drop")


@dataclass(frozen=True)
class Finding:
    """One bad row."""

    kind: str
    line: int
    """Line of the manifest file."""
    words: str


def findings(manifest: Manifest, folder: Path | None = None) -> list[Finding]:
    """Everything wrong with a manifest, in the order of its lines; with a folder also videos that are not in it."""
    found = [*_video_findings(manifest), *_query_findings(manifest), *_instance_findings(manifest)]
    if folder is not None:
        _, missing = locate_videos(manifest, folder)
        lines = manifest.videos.drop_duplicates("video_id").set_index("video_id")["line"].to_dict()
        found += [Finding("missing video", lines[key], f"{key}: no file in {folder}") for key in missing]
    return sorted(found, key=lambda item: item.line)


def _durations(manifest: Manifest) -> dict[tuple[str, str], float]:
    keys = zip(manifest.videos["video_id"], manifest.videos["split"], strict=True)
    return dict(zip(keys, manifest.videos["duration_seconds"].astype(float), strict=True))


def _video_findings(manifest: Manifest) -> Iterator[Finding]:
    seen = set()
    for row in manifest.videos.to_dict("records"):
        key = (row["video_id"], row["split"])
        if key in seen:
            yield Finding("duplicate video", row["line"], f"{key[0]} stands twice in split {key[1]}")
        seen.add(key)
        if not (pd.notna(row["duration_seconds"]) and row["duration_seconds"] > 0):
            yield Finding("bad duration", row["line"], f"{key[0]}: duration {row['duration_seconds']}")


def segment_problem(start: float, end: float, duration: float) -> str | None:
    """The kind of what is wrong with a segment, or None."""
    if not (np.isfinite(start) and np.isfinite(end)):
        return "segment not finite"
    if end == start:
        return "zero-length segment"
    if end < start:
        return "reversed segment"
    if start < 0:
        return "segment before the video"
    if np.isfinite(duration) and start >= duration:
        return "segment wholly past the video"
    if np.isfinite(duration) and end > duration + END_TOLERANCE_SECONDS:
        return "segment past the video"
    return None


def _query_findings(manifest: Manifest) -> Iterator[Finding]:
    durations, seen, qids = _durations(manifest), set(), set()
    for row in manifest.queries.to_dict("records"):
        key, line = (row["video_id"], row["split"]), row["line"]
        duration = durations.get(key, np.nan)
        if key not in durations:
            yield Finding("unknown video or split", line, f"{key[0]} is not described in split {key[1]}")
        if not str(row["text"]).strip():
            yield Finding("empty text", line, f"{key[0]}: query {row['qid']} has no words")
        if (row["split"], row["qid"]) in qids:
            yield Finding("duplicate qid", line, f"qid {row['qid']} stands twice in split {row['split']}")
        qids.add((row["split"], row["qid"]))
        identity = (*key, row["text"], str(row["segments"]))
        if identity in seen:
            yield Finding("duplicate row", line, f"{key[0]}: the same query and segments stand twice")
        seen.add(identity)
        for start, end in row["segments"]:
            problem = segment_problem(start, end, duration)
            if problem:
                yield Finding(problem, line, f"{key[0]}: [{start}, {end}] in a video of {duration} s")
        yield from _saliency_findings(row, duration)


def _saliency_findings(row: dict, duration: float) -> Iterator[Finding]:
    if not isinstance(row["saliency_scores"], list):
        return
    clips, scores = row["relevant_clip_ids"], row["saliency_scores"]
    if not isinstance(clips, list) or len(clips) != len(scores):
        yield Finding("saliency of wrong length", row["line"], f"query {row['qid']}: clips and scores differ in number")
        return
    if any(not 0 <= score <= 4 for triple in scores for score in triple):
        yield Finding("saliency out of range", row["line"], f"query {row['qid']}: a score is not within 0-4")
    if np.isfinite(duration) and any(not 0 <= clip < duration / CLIP_SECONDS for clip in clips):
        yield Finding("clip outside the video", row["line"], f"query {row['qid']}: a clip id is past {duration} s")


def _instance_findings(manifest: Manifest) -> Iterator[Finding]:
    durations, seen, classes = _durations(manifest), set(), set(manifest.classes)
    for row in manifest.instances.to_dict("records"):
        key, line = (row["video_id"], row["split"]), row["line"]
        if key not in durations:
            yield Finding("unknown video or split", line, f"{key[0]} is not described in split {key[1]}")
        if row["label"] not in classes:
            yield Finding("unknown label", line, f"{key[0]}: {row['label']!r} is not among the classes")
        start, end = row["start_seconds"], row["end_seconds"]
        identity = (*key, row["label"], start, end)
        if identity in seen:
            yield Finding("duplicate row", line, f"{key[0]}: {row['label']} [{start}, {end}] stands twice")
        seen.add(identity)
        duration = durations.get(key, np.nan)
        problem = segment_problem(start, end, duration)
        if problem:
            yield Finding(problem, line, f"{key[0]}: {row['label']} [{start}, {end}] in a video of {duration} s")


def apply_rule(manifest: Manifest, rule: str) -> tuple[Manifest, Counter]:
    """The manifest with bad segments kept, repaired (cut to the video) or dropped, and how many rows each kind changed.

    Repair cuts to [0, duration]; what is then empty or reversed is dropped. Raises InputError for another rule.
    """
    if rule not in RULES:
        raise InputError(f"--bad-rows: got {rule!r}, expected one of {', '.join(RULES)}")
    changed: Counter = Counter()
    if rule == "keep":
        return manifest, changed
    durations = _durations(manifest)

    def settled(segment: tuple[float, float], key: tuple[str, str]) -> list[float] | None:
        start, end = map(float, segment)
        duration = durations.get(key, np.nan)
        problem = segment_problem(start, end, duration)
        if problem is None:
            return [start, end]
        upper = duration if np.isfinite(duration) else np.inf
        start, end = max(start, 0.0), min(end, upper)
        if rule == "repair" and end > start:
            changed[f"{problem}: cut to the video"] += 1
            return [start, end]
        changed[f"{problem}: dropped"] += 1
        return None

    return replace(manifest, queries=_queries(manifest, settled), instances=_instances(manifest, settled)), changed


def _queries(manifest: Manifest, settled: object) -> pd.DataFrame:
    queries = manifest.queries.copy()
    rows = zip(queries["segments"], queries["video_id"], queries["split"], strict=True)
    fixed = [[settled(segment, (video_id, split)) for segment in segments] for segments, video_id, split in rows]
    hidden = queries["segments"].map(len) == 0
    queries["segments"] = [[segment for segment in row if segment is not None] for row in fixed]
    return queries[hidden | (queries["segments"].map(len) > 0)].reset_index(drop=True)


def _instances(manifest: Manifest, settled: object) -> pd.DataFrame:
    instances = manifest.instances.copy()
    columns = ("start_seconds", "end_seconds", "video_id", "split")
    rows = zip(*(instances[column] for column in columns), strict=True)
    fixed = [settled((start, end), (video_id, split)) for start, end, video_id, split in rows]
    keep = [segment is not None for segment in fixed]
    instances = instances[keep].reset_index(drop=True)
    instances["start_seconds"] = [segment[0] for segment in fixed if segment is not None]
    instances["end_seconds"] = [segment[1] for segment in fixed if segment is not None]
    return instances
