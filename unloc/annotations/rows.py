"""What one line of a manifest may hold: keys, types, and how plain mistakes are named."""

import json
import math
import sys

from unloc.tasks import TASKS

_LARGEST = sys.float_info.max
REQUIRED = {
    "manifest": ("version", "name", "tasks"),
    "video": ("video_id", "split", "duration_seconds"),
    "query": ("video_id", "split", "qid", "text", "segments"),
    "instance": ("video_id", "split", "label", "segment"),
}


def parse_row(line: str) -> dict:
    """The row of a manifest line, ids as strings, missing optional keys as None.

    Numbers may be NaN or infinite here: `unloc data check` names those. Raises ValueError, saying what is wrong.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}); every line of a manifest is one object") from None
    except RecursionError:
        raise ValueError("not a manifest row: nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise ValueError(f"unknown kind {kind!r}; expected one of {', '.join(REQUIRED)}")
    missing = sorted(set(REQUIRED[kind]) - row.keys())
    if missing:
        raise ValueError(f"row of kind {kind!r} lacks {', '.join(missing)}")
    return _READERS[kind](row)


def _header(row: dict) -> dict:
    for key in ("tasks", "classes"):
        values = row.get(key) or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{key} must be a list of strings, got {values!r}")
        row[key] = values
    unknown = [task for task in row["tasks"] if task not in TASKS]
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}; expected some of {', '.join(TASKS)}")
    return row | {"name": _text(row, "name"), "source": str(row.get("source") or "")}


def _video(row: dict) -> dict:
    duration, file = row["duration_seconds"], row.get("file")
    if duration is not None and not is_number(duration):
        raise ValueError(f"duration_seconds must be a number or null, got {duration!r}")
    if file is not None and not isinstance(file, str):
        raise ValueError(f"file must be a path or null, got {file!r}")
    return row | {"video_id": _name(row, "video_id"), "split": _name(row, "split"), "file": file}


def _query(row: dict) -> dict:
    segments = row["segments"]
    if not isinstance(segments, list) or not all(map(is_segment, segments)):
        raise ValueError(f"segments must be a list of [start, end] in seconds, got {json.dumps(segments)[:60]}")
    clips, scores = row.get("relevant_clip_ids"), row.get("saliency_scores")
    if clips is not None and not _are_numbers(clips):
        raise ValueError(f"relevant_clip_ids must be a list of numbers, got {json.dumps(clips)[:60]}")
    if scores is not None and not (isinstance(scores, list) and all(map(_are_numbers, scores))):
        raise ValueError(f"saliency_scores must be a list of lists of numbers, got {json.dumps(scores)[:60]}")
    named = {key: _name(row, key) for key in ("video_id", "split", "qid")}
    return row | named | {"text": _text(row, "text"), "relevant_clip_ids": clips, "saliency_scores": scores}


def _instance(row: dict) -> dict:
    if not is_segment(row["segment"]):
        raise ValueError(f"segment must be [start, end] in seconds, got {json.dumps(row['segment'])[:60]}")
    return row | {key: _name(row, key) for key in ("video_id", "split", "label")}


_READERS = {"manifest": _header, "video": _video, "query": _query, "instance": _instance}


def _name(row: dict, key: str) -> str:
    """An identifier; whole numbers become strings, as QVHighlights writes its qids."""
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a non-empty string, got {value!r}")
    return value


def _text(row: dict, key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"{key} must be a string, got {row[key]!r}")
    return row[key]


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold (true and false are not numbers)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not _LARGEST < abs(value) < math.inf


def is_segment(value: object) -> bool:
    """Whether a JSON value is a pair of numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))
