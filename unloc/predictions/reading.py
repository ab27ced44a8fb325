"""Predictions from files in the field's own formats, recognised by their content, plain, gzipped or in a zip.

Without `problems` an entry that cannot be read is an error; with them it is told there and left out.
"""

import csv
import difflib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.problems import Problems
from unloc.annotations.values import is_number
from unloc.errors import MissingError, PredictionError
from unloc.predictions.records import DETECTION_COLUMNS, FramePrediction, MomentPrediction, StoredScores
from unloc.predictions.unpacking import unpacked_text
from unloc.predictions.writing import WINDOW_COLUMNS

ACTIVITYNET, QVHIGHLIGHTS, FRAMES = "ActivityNet JSON", "QVHighlights JSON lines", "AS JSON lines"
DETECTION_CSV, WINDOW_CSV = "csv of detections", "csv of windows"
READABLE = {
    "tal": (ACTIVITYNET, DETECTION_CSV),
    "mr": (QVHIGHLIGHTS, WINDOW_CSV),
    "hd": (QVHIGHLIGHTS,),
    "as": (FRAMES,),
}
FRAME_KEYS = ("video_id", "times_seconds", "fps", "labels")
FIRST_KEY = re.compile(rf'"(results|qid|vid|pred_relevant_windows|pred_saliency_scores|{"|".join(FRAME_KEYS)})"\s*:')
LIST_OF_OBJECTS = re.compile(r":\s*\[\s*[{\]]")
MOMENT_KEYS = {"mr": ("pred_relevant_windows",), "hd": ("pred_relevant_windows", "pred_saliency_scores")}
MOST_FPS = 1000.0
TIMINGS = ("times_seconds", "fps")
CUT_OFF = "line that is not JSON (cut off?): left out"
UNREADABLE = "unreadable entry: left out"
REPEATED_VIDEO = "duplicate id: of a video that stands twice the last list counts"
EMPTY = "empty list: nothing predicted"


@dataclass(frozen=True, kw_only=True)
class PredictionFile:
    """What a file holds."""

    format: str
    """Which format it is, and in what it was packed."""
    predictions: pd.DataFrame | list[MomentPrediction] | list[FramePrediction]
    external_labels: bool | None = None
    """Whether the file says that external data were used; None where the format does not say."""


def read_predictions(
    path: Path | str, task: str, *, split: str | None = None, problems: Problems | None = None
) -> PredictionFile:
    """Predictions of a file for a task. Of several files in a zip the one that names the split is read.

    Raises MissingError where the file is not there, PredictionError with the place of what cannot be read, or where the
    file holds another format than the task reads.
    """
    path = Path(path)
    text, packed = unpacked_text(path, split)
    found = _format_of(path, text)
    if found not in READABLE[task]:
        raise PredictionError(f"{path}: holds {found}; --task {task} reads {' or '.join(READABLE[task])}")
    external = None
    if found == ACTIVITYNET:
        predictions, external = _detections(path, text, problems)
    elif found == DETECTION_CSV:
        predictions = _csv_detections(path, text, problems)
    elif found == WINDOW_CSV:
        predictions = _csv_moments(path, text, problems)
    elif found == QVHIGHLIGHTS:
        predictions = _moments(path, text, problems, MOMENT_KEYS[task])
    else:
        predictions = _frames(path, text, problems)
    return PredictionFile(format=found + packed, predictions=predictions, external_labels=external)


def read_detections(path: Path | str) -> pd.DataFrame:
    """An ActivityNet submission (or csv) as a table. Raises as `read_predictions`."""
    return read_predictions(path, "tal").predictions


def read_moments(path: Path | str) -> list[MomentPrediction]:
    """A QVHighlights submission (or csv). Raises as `read_predictions`."""
    return read_predictions(path, "mr").predictions


def read_frames(path: Path | str) -> list[FramePrediction]:
    """AS predictions with their sidecar of scores. Raises as `read_predictions`."""
    return read_predictions(path, "as").predictions


# -- formats --------------------------------------------------------------------------------------------------------


def _format_of(path: Path, text: str) -> str:
    head = text[:100_000].lstrip()
    if not head:
        raise PredictionError(f"{path} is empty; expected {', '.join((ACTIVITYNET, QVHIGHLIGHTS, FRAMES))} or csv")
    key = FIRST_KEY.search(head)
    if head.startswith("{") and key:
        if key[1] == "results":
            return ACTIVITYNET
        return FRAMES if key[1] in FRAME_KEYS else QVHIGHLIGHTS
    columns = next(csv.reader([head.split("\n", 1)[0].strip()]), [])
    for name, wanted in ((DETECTION_CSV, DETECTION_COLUMNS), (WINDOW_CSV, WINDOW_COLUMNS)):
        if set(wanted) <= set(columns):
            return name
    known = f"{ACTIVITYNET}, {QVHIGHLIGHTS}, {FRAMES} or csv with {', '.join(DETECTION_COLUMNS)}"
    raise PredictionError(f"{path}: not a known format of predictions (starts with {head[:40]!r}); expected {known}")


def _tell(problems: Problems | None, kind: str, place: str, reason: str) -> None:
    """Tell what cannot be read; without a place to tell it, raise it."""
    if problems is None:
        raise PredictionError(f"{place}: {reason}")
    problems.add(kind, f"{place}: {reason}")


# -- ActivityNet JSON -----------------------------------------------------------------------------------------------


def _detections(path: Path, text: str, problems: Problems | None) -> tuple[pd.DataFrame, bool | None]:
    try:
        stated = json.loads(text)
        if problems is not None:
            _tell_repeated(path, text, stated, problems)
    except json.JSONDecodeError as error:
        raise PredictionError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
    except (ValueError, RecursionError) as error:
        raise PredictionError(f"{path}: not JSON that can be read ({error})") from None
    if not isinstance(stated, dict) or not isinstance(stated.get("results"), dict):
        raise PredictionError(f'{path}: not an ActivityNet submission; expected {{"results": {{video_id: […]}}}}')
    tables = [_video_detections(path, *entry, problems) for entry in stated["results"].items()]
    labels = [label for video_labels, _ in tables for label in video_labels]
    numbers = np.concatenate([*(rows for _, rows in tables), np.zeros((0, 3))])
    videos = np.repeat(np.array(list(stated["results"]), dtype=object), [len(rows) for _, rows in tables])
    table = pd.DataFrame({"video_id": videos, "label": labels})
    table[["start_seconds", "end_seconds", "score"]] = numbers
    external = stated.get("external_data")
    used = external.get("used") if isinstance(external, dict) else None
    return table.astype({"video_id": object, "label": object}), bool(used) if used is not None else None


def _tell_repeated(path: Path, text: str, stated: object, problems: Problems) -> None:
    """Tell videos that stand twice. Asking for every key while reading would double the time, so lists are counted."""
    results = stated.get("results") if isinstance(stated, dict) else None
    if isinstance(results, dict) and sum(1 for _ in LIST_OF_OBJECTS.finditer(text)) == len(results):
        return

    def told(pairs: list[tuple[str, object]]) -> dict:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                problems.add(REPEATED_VIDEO, f"{path}: {key!r}")
            seen.add(key)
        return dict(pairs)

    json.loads(text, object_pairs_hook=told)


def _video_detections(
    path: Path, video_id: str, items: object, problems: Problems | None
) -> tuple[list[str], np.ndarray]:
    """(labels, (n, 3) start, end, score) of one video's list."""
    place = f"{path}: results[{video_id!r}]"
    if not isinstance(items, list):
        _tell(problems, UNREADABLE, place, f"expected a list, got {type(items).__name__}")
        return [], np.zeros((0, 3))
    if not items and problems is not None:
        problems.add(EMPTY, place)
    try:
        rows = np.array([[*item["segment"], item["score"]] for item in items], dtype=np.float64).reshape(-1, 3)
        labels = [item["label"] for item in items if isinstance(item["segment"], list)]
        if len(rows) == len(labels) == len(items) and all(isinstance(label, str) for label in labels):
            return labels, rows
    except (TypeError, KeyError, ValueError, OverflowError):
        pass  # one of them is at fault: found below, one by one
    kept = [_detection(f"{place}[{number}]", item, problems) for number, item in enumerate(items)]
    kept = [item for item in kept if item]
    return [label for label, _ in kept], np.array([row for _, row in kept], dtype=np.float64).reshape(-1, 3)


def _detection(place: str, item: object, problems: Problems | None) -> tuple[str, list[float]] | None:
    missing = [key for key in ("label", "score", "segment") if not isinstance(item, dict) or key not in item]
    if missing:
        _tell(problems, UNREADABLE, place, f"lacks {', '.join(missing)}")
        return None
    try:
        start, end = map(_number, item["segment"] if isinstance(item["segment"], list) else ())
        row = [start, end, _number(item["score"])]
    except (TypeError, ValueError, OverflowError):
        reason = f"segment {_short(item['segment'])}, score {_short(item['score'])}: not two numbers and a number"
        _tell(problems, UNREADABLE, place, reason)
        return None
    return str(item["label"]), row


def _short(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}…"


def _number(value: object) -> float:
    """A number; null is NaN, which is told apart later."""
    return np.nan if value is None else float(value)


# -- JSON lines -----------------------------------------------------------------------------------------------------


def _json_lines(path: Path, text: str, problems: Problems | None) -> Iterator[tuple[str, dict]]:
    # Not splitlines: a sentence may hold other line separators (U+2028) that JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            _tell(problems, CUT_OFF, f"{path}:{number}", f"not JSON ({reason}); is the file cut off?")
            continue
        if isinstance(row, dict):
            yield f"{path}:{number}", row
        else:
            _tell(problems, UNREADABLE, f"{path}:{number}", f"expected an object, got {type(row).__name__}")


def _moments(path: Path, text: str, problems: Problems | None, keys: tuple[str, ...]) -> list[MomentPrediction]:
    predictions = []
    for place, row in _json_lines(path, text, problems):
        for key in keys:
            similar = difflib.get_close_matches(key, row, n=1, cutoff=0.7) if key not in row else []
            if similar and problems is not None:
                problems.add(f"key {similar[0]!r} looks like {key}: not read", place)
        if "vid" not in row or ("qid" not in row and "query" not in row):
            _tell(problems, UNREADABLE, place, f"needs vid, and qid or query; it has {', '.join(row) or 'nothing'}")
            continue
        try:
            windows = _windows([window[:3] for window in row.get("pred_relevant_windows") or []])
            saliency = row.get("pred_saliency_scores")
            saliency = None if saliency is None else np.array(saliency, dtype=np.float64).reshape(len(saliency))
            predictions.append(
                MomentPrediction(
                    qid=_qid(row.get("qid", "")),
                    video_id=str(row["vid"]),
                    query=str(row.get("query") or ""),
                    windows=windows,
                    saliency=saliency,
                    place=place,
                )
            )
        except (TypeError, ValueError, KeyError, OverflowError):
            _tell(problems, UNREADABLE, place, "windows must be [start, end, score] and saliency a list of numbers")
    return predictions


def _qid(value: object) -> str:
    """As text; some tables of numbers make 7 a 7.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _frames(path: Path, text: str, problems: Problems | None) -> list[FramePrediction]:
    predictions, sidecars = [], {}
    for place, row in _json_lines(path, text, problems):
        wrong = _wrong_frames(row)
        if wrong:
            _tell(problems, UNREADABLE, place, wrong)
        else:
            scores = _sidecar_scores(path, place, row, sidecars)
            timing = {key: row[key] for key in TIMINGS if key in row}
            predictions.append(
                FramePrediction(
                    video_id=str(row["video_id"]), labels=row["labels"], scores=scores, place=place, **timing
                )
            )
    return predictions


def _wrong_frames(row: dict) -> str | None:
    """What keeps a row from being labels with times."""
    missing = [key for key in ("video_id", "labels") if key not in row]
    if missing or not any(key in row for key in TIMINGS):
        return f"lacks {', '.join(missing or ['times_seconds'])}; it has {', '.join(row) or 'nothing'}"
    labels = row["labels"]
    if not isinstance(labels, list) or not all(name is None or isinstance(name, str) for name in labels):
        return "labels must be a list of class names and nulls"
    if all(key in row for key in TIMINGS):
        return "states both times_seconds and fps; keep the one that is meant"
    if "times_seconds" in row:
        return _wrong_times(row["times_seconds"], len(labels))
    fps = row["fps"]
    if not isinstance(fps, int | float) or not 0 < fps < MOST_FPS:
        return f"fps {_short(fps)} must be above 0 and below {MOST_FPS:g}"
    return None


def _wrong_times(times: object, num_labels: int) -> str | None:
    if not isinstance(times, list) or not all(is_number(time) and math.isfinite(time) for time in times):
        return f"times_seconds {_short(times)} must be a list of numbers"
    if len(times) != num_labels:
        return f"times_seconds has {len(times)} times for {num_labels} labels"
    for number, (time, following) in enumerate(pairwise(times)):
        if float(following) <= float(time):
            return f"times_seconds must rise; time {number + 1} is {following:g} after {time:g}"
    return None


def _sidecar_scores(path: Path, place: str, row: dict, sidecars: dict) -> StoredScores | None:
    """The scores of a video, left in their file: all of them at once may not fit into memory."""
    if not row.get("scores_file"):
        return None
    name, video_id = str(row["scores_file"]), str(row["video_id"])
    if name not in sidecars:
        sidecars[name] = _sidecar(path.parent / name, place)
    if video_id not in sidecars[name]:
        return None
    try:
        with sidecars[name].zip.open(f"{video_id}.npy") as member:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(member)](member)
        if not np.issubdtype(dtype, np.number):
            raise ValueError(f"{video_id} holds {dtype}, expected numbers")
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise PredictionError(f"{place}: scores file {name} cannot be read ({error})") from None
    return StoredScores(sidecars[name], video_id, shape)


def _sidecar(path: Path, place: str) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise MissingError(f"{place}: scores file {path} does not exist")
    try:
        held = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise PredictionError(f"{place}: scores file {path.name} cannot be read ({error})") from None
    if not isinstance(held, Mapping):
        raise PredictionError(f"{place}: scores file {path.name} holds one array; expected an .npz with one per video")
    return held


# -- csv ------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, text: str, problems: Problems | None) -> Iterator[tuple[str, dict[str, str], list[float]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            place = f"{path}:{reader.line_num}"
            try:
                numbers = [float(row[name]) if row[name] else np.nan for name in WINDOW_COLUMNS[-3:]]
            except (TypeError, ValueError):
                _tell(problems, UNREADABLE, place, f"{', '.join(WINDOW_COLUMNS[-3:])} must be numbers")
            else:
                yield place, row, numbers
    except csv.Error as error:
        raise PredictionError(f"{path}:{reader.line_num}: not csv ({error})") from None


def _csv_detections(path: Path, text: str, problems: Problems | None) -> pd.DataFrame:
    rows = [(row["video_id"], row["label"], *numbers) for _, row, numbers in _csv_rows(path, text, problems)]
    return pd.DataFrame(rows, columns=DETECTION_COLUMNS)


def _csv_moments(path: Path, text: str, problems: Problems | None) -> list[MomentPrediction]:
    found: dict[tuple[str, str, str], tuple[str, list[list[float]]]] = {}
    for place, row, numbers in _csv_rows(path, text, problems):
        _, windows = found.setdefault((row["qid"], row["video_id"], row["query"]), (place, []))
        if row["start_seconds"]:
            windows.append(numbers)
    return [
        MomentPrediction(qid=qid, video_id=video_id, query=query, windows=_windows(rows), place=place)
        for (qid, video_id, query), (place, rows) in found.items()
    ]


def _windows(rows: Sequence[list[float]]) -> np.ndarray:
    """(N, 3) of as many rows of three numbers. Raises ValueError or TypeError for anything else."""
    windows = np.array(rows, dtype=np.float64)
    if len(rows) and windows.shape != (len(rows), 3):
        raise ValueError
    return windows.reshape(-1, 3)
