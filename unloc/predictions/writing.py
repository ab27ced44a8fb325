"""Predictions into files: ActivityNet and QVHighlights submissions, JSON lines with labels of frames, and csv."""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.errors import InputError
from unloc.files import write_file
from unloc.predictions.records import DETECTION_COLUMNS, WINDOW_COLUMNS, FramePrediction, MomentPrediction

SUBMITTED_SPLITS = ("val", "test")  # of QVHighlights, in one zip
EXPORTS = {"tal": (".json", ".csv"), "mr": (".jsonl", ".zip", ".csv"), "hd": (".jsonl", ".zip"), "as": (".jsonl",)}
EXPORTS |= {"cls": EXPORTS["tal"], "rejection": EXPORTS["hd"]}  # labels of whole videos are detections
"""File endings that predictions of a task can be exported to; csv would lose saliency and existence."""


def export_predictions(
    path: Path, task: str, predictions: pd.DataFrame | Sequence, split: str, *, external_labels: bool = False
) -> None:
    """Predictions in the format of the name's ending. Raises InputError where the task has no such format."""
    suffix = path.suffix.lower()
    if suffix not in EXPORTS[task]:
        raise InputError(f"--export {path}: predictions of {task} are written as {' or '.join(EXPORTS[task])}")
    if suffix == ".csv":
        write_csv(path, predictions)
    elif task in ("tal", "cls"):
        write_detections(path, predictions, external_labels=external_labels)
    elif task == "as":
        write_frames(path, predictions)
    else:
        write_moments(path, predictions, split if suffix == ".zip" else None)


def write_detections(path: Path, detections: pd.DataFrame, *, external_labels: bool = False) -> None:
    """Write an ActivityNet submission."""
    results: dict[str, list[dict]] = {}
    for video_id, label, start, end, score in detections[DETECTION_COLUMNS].itertuples(index=False):
        segment = [float(start), float(end)]
        results.setdefault(video_id, []).append({"label": label, "score": float(score), "segment": segment})
    content = {"version": "VERSION 1.3", "results": results, "external_data": {"used": external_labels}}
    write_file(path, json.dumps(content, ensure_ascii=False))


def write_moments(path: Path, predictions: Sequence[MomentPrediction], split: str | None = None) -> None:
    """Write a QVHighlights submission; numeric qids as numbers, as there. With a split (val or test) into a zip for
    QVHighlights' server, which takes both: other files in it are kept.
    """
    rows = []
    for item in predictions:
        qid = int(item.qid) if item.qid.isdecimal() and str(int(item.qid)) == item.qid else item.qid
        row = {"qid": qid, "query": item.query, "vid": item.video_id, "pred_relevant_windows": item.windows.tolist()}
        row |= {} if item.existence is None else {"pred_exist_score": item.existence}
        saliency = {} if item.saliency is None else {"pred_saliency_scores": np.asarray(item.saliency).tolist()}
        rows.append(row | saliency)
    content = _json_lines(rows)
    if split is not None:
        members = {f"hl_{split}_submission.jsonl": content.encode("utf-8", "backslashreplace")}
        if path.is_file():
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()} | members
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(members):
                archive.writestr(name, members[name])
        content = buffer.getvalue()
    write_file(path, content)


def missing_submissions(path: Path) -> list[str]:
    """The files that QVHighlights' server expects in a zip and that this one lacks."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return [name for name in (f"hl_{split}_submission.jsonl" for split in SUBMITTED_SPLITS) if name not in names]


def write_frames(path: Path, predictions: Sequence[FramePrediction]) -> None:
    """Write JSON lines, and class scores in `<stem>_scores.npz` next to them, one array per video."""
    arrays, rows, sidecar = {}, [], path.with_name(f"{path.stem}_scores.npz")
    for item in predictions:
        timing = {"fps": item.fps} if item.times_seconds is None else {"times_seconds": item.times_seconds.tolist()}
        rows.append({"video_id": item.video_id, **timing, "labels": item.labels})
        if item.scores is not None:
            scores = np.asarray(item.scores)
            with np.errstate(over="ignore"):
                single = scores.astype(np.float32)
            # In float32 where that is exact: rounded scores could tie and change the ranking.
            arrays[item.video_id] = single if np.array_equal(single, scores, equal_nan=True) else scores
    if arrays:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_file(sidecar, content.getvalue())
        rows = [row | {"scores_file": sidecar.name} for row in rows]
    write_file(path, _json_lines(rows))


def write_csv(path: Path, predictions: pd.DataFrame | Sequence[MomentPrediction]) -> None:
    """Write one detection or one window a line, numbers in full; a query without windows is a line without numbers."""
    rows, is_table = [], isinstance(predictions, pd.DataFrame)
    for item in () if is_table else predictions:
        query = (item.qid, item.video_id, item.query)
        rows += [(*query, *window) for window in item.windows.tolist()] or [(*query, None, None, None)]
    table = predictions[DETECTION_COLUMNS] if is_table else pd.DataFrame(rows, columns=WINDOW_COLUMNS)
    write_file(path, table.to_csv(index=False, lineterminator="\n"))


def _json_lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) or "\n"
