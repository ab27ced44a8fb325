"""Predictions into files: the field's own formats, submissions, and csv.

TAL   ActivityNet submission JSON
MR/HD QVHighlights submission JSON lines, or the zip of them that its server takes
AS    JSON lines, one video each, with the time of every label, and per-class scores in a sidecar .npz
csv   one detection or one window a line
"""

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.errors import InputError
from unloc.files import write_file
from unloc.predictions.records import DETECTION_COLUMNS, FramePrediction, MomentPrediction

SUBMITTED_SPLITS = ("val", "test")  # of QVHighlights, in one zip
WINDOW_COLUMNS = ["qid", "video_id", "query", "start_seconds", "end_seconds", "score"]


def _write(path: Path, content: str | bytes) -> None:
    try:
        # Half a character becomes its JSON escape, which is how it came in.
        write_file(path, content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def write_detections(path: Path, detections: pd.DataFrame, *, external_labels: bool = False) -> None:
    """The official ActivityNet submission form."""
    results: dict[str, list[dict]] = {}
    columns = (detections[name] for name in DETECTION_COLUMNS)
    for video_id, label, start, end, score in zip(*columns, strict=True):
        segment = [float(start), float(end)]
        results.setdefault(video_id, []).append({"label": label, "score": float(score), "segment": segment})
    content = {"version": "VERSION 1.3", "results": results, "external_data": {"used": external_labels}}
    _write(path, json.dumps(content, ensure_ascii=False))


def write_moments(path: Path, predictions: Sequence[MomentPrediction]) -> None:
    """The official QVHighlights submission form."""
    _write(path, _moment_lines(predictions))


def write_moments_zip(path: Path, predictions: Sequence[MomentPrediction], split: str) -> None:
    """A zip with the lines under the name that QVHighlights' server expects for the split (val or test).

    The server takes both splits in one zip: what a zip that exists holds of other splits stays in it.
    """
    members = {f"hl_{split}_submission.jsonl": _moment_lines(predictions).encode("utf-8", "backslashreplace")}
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()} | members
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(name, members[name])
    _write(path, held.getvalue())


def missing_submissions(path: Path) -> list[str]:
    """The files that QVHighlights' server expects in a zip and that it lacks."""
    with zipfile.ZipFile(path) as archive:
        held = archive.namelist()
    return [name for name in (f"hl_{split}_submission.jsonl" for split in SUBMITTED_SPLITS) if name not in held]


def _moment_lines(predictions: Sequence[MomentPrediction]) -> str:
    """Numeric qids are written as numbers, as QVHighlights has them."""
    lines = []
    for item in predictions:
        qid = int(item.qid) if item.qid.isdecimal() and str(int(item.qid)) == item.qid else item.qid
        row = {"qid": qid, "query": item.query, "vid": item.video_id, "pred_relevant_windows": item.windows.tolist()}
        if item.saliency is not None:
            row["pred_saliency_scores"] = np.asarray(item.saliency).tolist()
        lines.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def write_frames(path: Path, predictions: Sequence[FramePrediction]) -> None:
    """JSON lines with the time of every label (where a file stated a rate, that), and class scores beside them in
    `<stem>_scores.npz`, one array per video.
    """
    scores = {item.video_id: _smallest(item.scores) for item in predictions if item.scores is not None}
    sidecar = path.with_name(f"{path.stem}_scores.npz")
    rows = [{"video_id": item.video_id, **_timing(item), "labels": item.labels} for item in predictions]
    if scores:
        held = io.BytesIO()
        np.savez_compressed(held, **scores)
        _write(sidecar, held.getvalue())
        rows = [row | {"scores_file": sidecar.name} for row in rows]
    _write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


def _timing(item: FramePrediction) -> dict:
    return {"fps": item.fps} if item.times_seconds is None else {"times_seconds": item.times_seconds.tolist()}


def _smallest(scores: np.ndarray) -> np.ndarray:
    """In float32 where that loses nothing: rounded scores would tie, and be ranked otherwise than before."""
    with np.errstate(over="ignore"):
        single = np.asarray(scores, dtype=np.float32)
    return single if np.array_equal(single, scores, equal_nan=True) else np.asarray(scores)


def write_csv(path: Path, predictions: pd.DataFrame | Sequence[MomentPrediction]) -> None:
    """One detection or one window a line, numbers in full; a query without windows is one line without numbers."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    if isinstance(predictions, pd.DataFrame):
        writer.writerow(DETECTION_COLUMNS)
        columns = (predictions[name] for name in DETECTION_COLUMNS)
        rows = zip(*columns, strict=True)
        writer.writerows((video_id, label, *map(_exact, numbers)) for video_id, label, *numbers in rows)
    else:
        writer.writerow(WINDOW_COLUMNS)
        for item in predictions:
            head = (item.qid, item.video_id, item.query)
            writer.writerows([(*head, *map(_exact, window)) for window in item.windows] or [(*head, "", "", "")])
    _write(path, held.getvalue())


def _exact(number: float) -> str:
    return repr(float(number))


def export_predictions(
    path: Path, task: str, predictions: pd.DataFrame | Sequence, split: str, *, external_labels: bool = False
) -> None:
    """Predictions in the form that the name's ending asks for: .json (ActivityNet), .jsonl, .zip (QVHighlights), .csv.

    Raises InputError where the task has no such form, or where csv would lose saliency.
    """
    suffix = path.suffix.lower()
    if task == "tal" and suffix == ".json":
        write_detections(path, predictions, external_labels=external_labels)
    elif task in ("mr", "hd") and suffix == ".jsonl":
        write_moments(path, predictions)
    elif task in ("mr", "hd") and suffix == ".zip":
        write_moments_zip(path, predictions, split)
    elif task == "as" and suffix == ".jsonl":
        write_frames(path, predictions)
    elif task in ("tal", "mr") and suffix == ".csv":
        write_csv(path, predictions)
    else:
        forms = {"tal": ".json or .csv", "mr": ".jsonl, .zip or .csv", "hd": ".jsonl or .zip", "as": ".jsonl"}
        raise InputError(f"--export {path}: predictions of {task} are written as {forms[task]}")
