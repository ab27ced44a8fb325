"""Predictions in memory and in the field's own formats.

TAL   ActivityNet submission JSON
MR/HD QVHighlights submission JSON lines (or a zip of one)
AS    JSON lines, one video each, with per-class scores in a sidecar .npz
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.errors import MissingError, PredictionError

DETECTION_COLUMNS = ["video_id", "label", "start_seconds", "end_seconds", "score"]


@dataclass(frozen=True, kw_only=True)
class MomentPrediction:
    """Windows (and saliency) for one query of one video."""

    qid: str
    video_id: str
    query: str
    windows: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    """(N, 3) start, end in seconds and score, in the file's order."""
    saliency: np.ndarray | None = None
    """One score per 2 s clip, where there is saliency."""


@dataclass(frozen=True, kw_only=True)
class FramePrediction:
    """One label per frame of one video."""

    video_id: str
    fps: float
    """Frames of the prediction per second; frame k stands for time k / fps."""
    labels: list[str | None]
    """Class name or None for background."""
    scores: np.ndarray | None = None
    """(num_frames, num_classes) score of each class in the manifest's class order."""


def detections_table(rows: Iterable[tuple[str, str, float, float, float]]) -> pd.DataFrame:
    """Rows (video_id, label, start, end, score) as a table."""
    return pd.DataFrame(list(rows), columns=DETECTION_COLUMNS)


# -- writing --------------------------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_detections(path: Path, detections: pd.DataFrame) -> None:
    """The official ActivityNet submission form."""
    results: dict[str, list[dict]] = {}
    columns = (detections[name] for name in DETECTION_COLUMNS)
    for video_id, label, start, end, score in zip(*columns, strict=True):
        segment = [float(start), float(end)]
        results.setdefault(video_id, []).append({"label": label, "score": float(score), "segment": segment})
    _write(path, json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {"used": False}}))


def write_moments(path: Path, predictions: Sequence[MomentPrediction]) -> None:
    """The official QVHighlights submission form; numeric qids are written as numbers, as QVHighlights has them."""
    lines = []
    for item in predictions:
        qid = int(item.qid) if item.qid.isdigit() else item.qid
        row = {"qid": qid, "query": item.query, "vid": item.video_id, "pred_relevant_windows": item.windows.tolist()}
        if item.saliency is not None:
            row["pred_saliency_scores"] = np.asarray(item.saliency).tolist()
        lines.append(json.dumps(row, ensure_ascii=False))
    _write(path, "\n".join(lines) + "\n")


def write_frames(path: Path, predictions: Sequence[FramePrediction]) -> None:
    """JSON lines, and class scores beside them in `<stem>_scores.npz`, one array per video."""
    scores = {
        item.video_id: np.asarray(item.scores, dtype=np.float32) for item in predictions if item.scores is not None
    }
    sidecar = path.with_name(f"{path.stem}_scores.npz")
    rows = [{"video_id": item.video_id, "fps": item.fps, "labels": item.labels} for item in predictions]
    if scores:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = sidecar.with_name(f".{sidecar.name}.part")
        with temporary.open("wb") as handle:
            np.savez_compressed(handle, **scores)
        temporary.replace(sidecar)
        rows = [row | {"scores_file": sidecar.name} for row in rows]
    _write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


# -- reading --------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingError(f"predictions {path} does not exist")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".jsonl")]
            if len(names) != 1:
                raise PredictionError(f"{path}: holds {len(names)} .jsonl files, expected one; unzip it and name one")
            return archive.read(names[0]).decode("utf-8")
    return path.read_text(encoding="utf-8")


def _json_lines(path: Path) -> Iterable[tuple[int, dict]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PredictionError(f"{path}:{number}: not JSON ({error.msg}); is the file cut off?") from None
        if not isinstance(row, dict):
            raise PredictionError(f"{path}:{number}: expected an object per line, got {type(row).__name__}")
        yield number, row


def _need(row: dict, keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise PredictionError(f"{where}: lacks {', '.join(missing)}; keys found: {', '.join(map(str, row))}")


def read_detections(path: Path) -> pd.DataFrame:
    """An ActivityNet submission as a table. Raises PredictionError with the place of what cannot be read."""
    try:
        stated = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise PredictionError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
    if not isinstance(stated, dict) or not isinstance(stated.get("results"), dict):
        raise PredictionError(f'{path}: not an ActivityNet submission; expected {{"results": {{video_id: […]}}}}')
    rows = []
    for video_id, items in stated["results"].items():
        for number, item in enumerate(items):
            where = f"{path}: results[{video_id!r}][{number}]"
            _need(item, ("label", "score", "segment"), where)
            try:
                start, end = map(float, item["segment"])
                rows.append((video_id, item["label"], start, end, float(item["score"])))
            except (TypeError, ValueError):
                raise PredictionError(
                    f"{where}: segment {item['segment']!r}, score {item['score']!r}: not numbers"
                ) from None
    return detections_table(rows)


def read_moments(path: Path) -> list[MomentPrediction]:
    """A QVHighlights submission. Raises PredictionError with the line of what cannot be read."""
    predictions = []
    for number, row in _json_lines(path):
        where = f"{path}:{number}"
        _need(row, ("vid",), where)
        if "qid" not in row and "query" not in row:
            raise PredictionError(f"{where}: has neither qid nor query")
        try:
            windows = np.asarray([window[:3] for window in row.get("pred_relevant_windows", [])], dtype=np.float64)
            windows = windows.reshape(-1, 3)
            saliency = row.get("pred_saliency_scores")
            saliency = None if saliency is None else np.asarray(saliency, dtype=np.float64)
        except (TypeError, ValueError):
            raise PredictionError(
                f"{where}: windows must be [start, end, score] and saliency a list of numbers"
            ) from None
        predictions.append(
            MomentPrediction(
                qid=str(row.get("qid", "")),
                video_id=row["vid"],
                query=row.get("query", ""),
                windows=windows,
                saliency=saliency,
            )
        )
    return predictions


def read_frames(path: Path) -> list[FramePrediction]:
    """AS predictions with their sidecar of scores. Raises PredictionError with the line of what cannot be read."""
    predictions, sidecars = [], {}
    for number, row in _json_lines(path):
        _need(row, ("video_id", "fps", "labels"), f"{path}:{number}")
        name = row.get("scores_file")
        if name and name not in sidecars:
            if not (path.parent / name).is_file():
                raise MissingError(f"{path}:{number}: scores file {path.parent / name} does not exist")
            sidecars[name] = np.load(path.parent / name)
        scores = sidecars[name][row["video_id"]] if name and row["video_id"] in sidecars[name] else None
        predictions.append(
            FramePrediction(video_id=row["video_id"], fps=float(row["fps"]), labels=row["labels"], scores=scores)
        )
    return predictions
