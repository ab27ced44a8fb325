"""Predictions from files in the field's own formats, recognised by their content; plain, gzipped or in a zip.

Without a log of problems, an entry that cannot be read raises an error; with one it is logged and skipped.
"""

import csv
import difflib
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.problems import Problems
from unloc.annotations.values import Name, brief, parse_json, read_as
from unloc.errors import MissingError, PredictionError
from unloc.predictions.records import (
    DETECTION_COLUMNS,
    WINDOW_COLUMNS,
    FramePrediction,
    MomentPrediction,
    StoredScores,
)

# What is tolerated where problems are logged, and what becomes of it.
CUT_OFF = "line that is not JSON (cut off?): left out"
UNREADABLE = "unreadable entry: left out"
REPEATED_VIDEO = "duplicate id: of a video that occurs twice the last list counts"
EMPTY = "empty list: nothing predicted"
MISSPELLED = "key {!r} looks like {}: not read"

FRAME_KEYS = ("video_id", "times_seconds", "fps", "labels")
MOMENT_KEYS = ("qid", "vid", "pred_relevant_windows", "pred_saliency_scores")
_FIRST_KEY = re.compile(rf'"(results|{"|".join(MOMENT_KEYS + FRAME_KEYS)})"\s*:')
_LIST_OF_OBJECTS = re.compile(r":\s*\[\s*[{\]]")


@dataclass(frozen=True, kw_only=True)
class PredictionFile:
    """The content of a file."""

    format: str
    """The name of its format, and how it was packed."""
    predictions: pd.DataFrame | list[MomentPrediction] | list[FramePrediction]
    external_labels: bool | None = None
    """Whether the file says that external data were used; None where the format does not say."""


def read_predictions(
    path: Path | str, task: str, *, split: str | None = None, problems: Problems | None = None
) -> PredictionFile:
    """Predictions of a file for a task. Of several files in a zip the one that names the split is read.

    Raises MissingError where the file is absent, PredictionError with the place of what cannot be read, or where the
    file has a format that the task does not read.
    """
    path = Path(path)
    text, packing = unpacked_text(path, split)
    reader = _Reader(path, text, task, problems)
    name = _format_of(path, text)
    tasks, read = _FORMATS[name]
    if task not in tasks:
        others = " or ".join(other for other, (tasks, _) in _FORMATS.items() if task in tasks)
        raise PredictionError(f"{path}: holds {name}; --task {task} reads {others}")
    predictions = read(reader)
    return PredictionFile(format=name + packing, predictions=predictions, external_labels=reader.external_labels)


def read_detections(path: Path | str) -> pd.DataFrame:
    """An ActivityNet submission (or csv) as a table. Raises as `read_predictions`."""
    return read_predictions(path, "tal").predictions


def read_moments(path: Path | str) -> list[MomentPrediction]:
    """A QVHighlights submission (or csv). Raises as `read_predictions`."""
    return read_predictions(path, "mr").predictions


def read_frames(path: Path | str) -> list[FramePrediction]:
    """AS predictions with their sidecar of scores. Raises as `read_predictions`."""
    return read_predictions(path, "as").predictions


def unpacked_text(path: Path, split: str | None) -> tuple[str, str]:
    """(text, how it was packed) of a file that may be gzipped or in a zip. Raises as `read_predictions`."""
    if path.is_dir():
        raise PredictionError(f"{path} is a folder; expected a file of predictions (folders go with --zero-shot)")
    if not path.is_file():
        raise MissingError(f"predictions {path} does not exist")
    content, packing = path.read_bytes(), ""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".jsonl") and "__MACOSX" not in name]
                if len(names) > 1 and split:
                    words = {name: re.split(r"[^a-z0-9]+", Path(name).stem.lower()) for name in names}
                    names = [name for name in names if split.lower() in words[name]] or names
                if len(names) != 1:
                    expected = f"expected one .jsonl file, or one that names the split {split}"
                    raise PredictionError(f"{path}: {expected}; got {', '.join(names) or 'none'}")
                content, packing = archive.read(names[0]), f" in a zip ({names[0]})"
        elif content.startswith(b"\x1f\x8b"):
            content, packing = gzip.decompress(content), ", gzipped"
        return content.decode("utf-8-sig"), packing
    except UnicodeDecodeError as error:
        raise PredictionError(f"{path}: not text (byte {error.start} is not UTF-8); expected predictions") from None
    except (EOFError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        raise PredictionError(f"{path}: cannot be unpacked ({error}); is the file cut off?") from None
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password or an unknown compression
        raise PredictionError(f"{path}: cannot be unpacked ({error}); expected a plain zip") from None


def _format_of(path: Path, text: str) -> str:
    head = text[:100_000].lstrip()
    expected = f"expected {', '.join(_FORMATS)}"
    if not head:
        raise PredictionError(f"{path} is empty; {expected}")
    key = _FIRST_KEY.search(head)
    if head.startswith("{") and key:
        if key[1] == "results":
            return "ActivityNet JSON"
        return "AS JSON lines" if key[1] in FRAME_KEYS else "QVHighlights JSON lines"
    columns = next(csv.reader([head.split("\n", 1)[0].strip()]), [])
    for name, wanted in (("csv of detections", DETECTION_COLUMNS), ("csv of windows", WINDOW_COLUMNS)):
        if set(wanted) <= set(columns):
            return name
    raise PredictionError(f"{path}: not a known format of predictions (starts with {head[:40]!r}); {expected}")


@dataclass(frozen=True)
class _FrameRow:
    """A line of AS predictions."""

    video_id: Name
    labels: list[str | None]
    times_seconds: list[float] | None = None
    fps: float | None = None
    scores_file: str | None = None


@dataclass
class _Reader:
    """Reads one file; a method for each format."""

    path: Path
    text: str
    task: str
    problems: Problems | None
    external_labels: bool | None = None

    def skip(self, kind: str, place: str, reason: str) -> None:
        """Log an entry that cannot be read; without a log, raise PredictionError."""
        if self.problems is None:
            raise PredictionError(f"{place}: {reason}")
        self.problems.add(kind, f"{place}: {reason}")

    # -- ActivityNet JSON

    def detections(self) -> pd.DataFrame:
        try:
            content = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise PredictionError(f"{self.path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
        except (ValueError, RecursionError) as error:
            raise PredictionError(f"{self.path}: not JSON that can be read ({error})") from None
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict):
            raise PredictionError(f'{self.path}: expected an ActivityNet submission, {{"results": {{video_id: […]}}}}')
        if self.problems is not None:
            self.log_repeated_videos(len(results))
        tables = [self.video_detections(f"{self.path}: results[{key!r}]", items) for key, items in results.items()]
        table = pd.DataFrame(
            {
                "video_id": np.repeat(np.array(list(results), dtype=object), [len(rows) for _, rows in tables]),
                "label": [label for labels, _ in tables for label in labels],
            }
        )
        numbers = np.concatenate([*(rows for _, rows in tables), np.zeros((0, 3))])
        table[["start_seconds", "end_seconds", "score"]] = numbers
        external = content.get("external_data")
        used = external.get("used") if isinstance(external, dict) else None
        self.external_labels = None if used is None else bool(used)
        return table.astype({"video_id": object, "label": object})

    def log_repeated_videos(self, num_videos: int) -> None:
        # A hook for every object would double the reading time: it runs only where there are more lists than videos.
        if sum(1 for _ in _LIST_OF_OBJECTS.finditer(self.text)) != num_videos:
            repeated = Problems()
            parse_json(self.text, str(self.path), repeated)
            for kind, count in repeated.counts.items():
                self.problems.add(REPEATED_VIDEO, repeated.first[kind], count)

    def video_detections(self, place: str, items: object) -> tuple[list[str], np.ndarray]:
        """(labels, (n, 3) start, end, score) of one video's list; null is NaN."""
        if not isinstance(items, list):
            self.skip(UNREADABLE, place, f"expected a list, got {brief(items)}")
            return [], np.zeros((0, 3))
        if not items and self.problems is not None:
            self.problems.add(EMPTY, place)

        def arrays(items: list[dict]) -> tuple[list[str], np.ndarray]:
            rows = np.array([[*item["segment"], item["score"]] for item in items], dtype=np.float64)
            if rows.shape != (len(items), 3) or not all(isinstance(item["segment"], list) for item in items):
                raise ValueError
            return [str(item["label"]) for item in items], rows

        try:
            return arrays(items) if items else ([], np.zeros((0, 3)))
        except (TypeError, KeyError, ValueError, OverflowError):
            pass  # at least one entry is bad: they are read one by one
        read = []
        for index, item in enumerate(items):
            try:
                read.append(arrays([item]))
            except (TypeError, KeyError, ValueError, OverflowError):
                expected = "expected a label, a score and a segment [start, end]"
                self.skip(UNREADABLE, f"{place}[{index}]", f"{expected}, got {brief(item)}")
        return [labels[0] for labels, _ in read], np.concatenate([*(rows for _, rows in read), np.zeros((0, 3))])

    # -- JSON lines

    def json_lines(self) -> Iterator[tuple[str, dict]]:
        """(place, object) of every line."""
        # Not splitlines: a sentence may hold other line separators (U+2028) that JSON leaves as they are.
        for number, line in enumerate(self.text.split("\n"), start=1):
            place = f"{self.path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                self.skip(CUT_OFF, place, f"not JSON ({getattr(error, 'msg', error)}); is the file cut off?")
                continue
            if isinstance(row, dict):
                yield place, row
            else:
                self.skip(UNREADABLE, place, f"expected an object, got {type(row).__name__}")

    def moments(self) -> list[MomentPrediction]:
        predictions = []
        keys = ("pred_relevant_windows", "pred_saliency_scores") if self.task == "hd" else ("pred_relevant_windows",)
        for place, row in self.json_lines():
            for key in keys:
                similar = difflib.get_close_matches(key, row, n=1, cutoff=0.7) if key not in row else []
                if similar and self.problems is not None:
                    self.problems.add(MISSPELLED.format(similar[0], key), place)
            if "vid" not in row or ("qid" not in row and "query" not in row):
                self.skip(UNREADABLE, place, f"needs vid, and qid or query; it has {', '.join(row) or 'nothing'}")
                continue
            qid, saliency = row.get("qid", ""), row.get("pred_saliency_scores")
            try:
                windows = _windows([window[:3] for window in row.get("pred_relevant_windows") or []])
                if saliency is not None:
                    saliency = np.array(saliency, dtype=np.float64).reshape(len(saliency))
            except (TypeError, ValueError, KeyError, OverflowError):
                self.skip(UNREADABLE, place, "windows must be [start, end, score] and saliency a list of numbers")
                continue
            predictions.append(
                MomentPrediction(
                    # Some tables of numbers turn 7 into 7.0.
                    qid=str(int(qid) if isinstance(qid, float) and qid.is_integer() else qid),
                    video_id=str(row["vid"]),
                    query=str(row.get("query") or ""),
                    windows=windows,
                    saliency=saliency,
                    place=place,
                )
            )
        return predictions

    def frames(self) -> list[FramePrediction]:
        predictions, sidecars = [], {}
        for place, row in self.json_lines():
            try:
                read = read_as(_FrameRow, row)
                timing = {"times_seconds": read.times_seconds, "fps": read.fps}
                item = FramePrediction(video_id=read.video_id, labels=read.labels, place=place, **timing)
            except ValueError as error:
                self.skip(UNREADABLE, place, str(error))
                continue
            scores = self.stored_scores(place, read, sidecars) if read.scores_file else None
            predictions.append(replace(item, scores=scores))
        return predictions

    def stored_scores(self, place: str, row: _FrameRow, sidecars: dict) -> StoredScores | None:
        """The scores of a video in its .npz, of which only the header is read."""
        path = self.path.parent / row.scores_file
        if not path.is_file():
            raise MissingError(f"{place}: scores file {path} does not exist")
        try:
            if path not in sidecars:
                sidecars[path] = np.load(path, allow_pickle=False)
                if not isinstance(sidecars[path], Mapping):
                    raise ValueError("it holds one array; expected an .npz with one per video")
            if row.video_id not in sidecars[path]:
                return None
            with sidecars[path].zip.open(f"{row.video_id}.npy") as member:
                version, header = np.lib.format.read_magic(member), np.lib.format
                read = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
                shape, _, dtype = read(member)
            if not np.issubdtype(dtype, np.number):
                raise ValueError(f"{row.video_id} holds {dtype}, expected numbers")
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise PredictionError(f"{place}: scores file {path.name} cannot be read ({error})") from None
        return StoredScores(sidecars[path], row.video_id, shape)

    # -- csv

    def csv_rows(self) -> Iterator[tuple[str, dict[str, str], list[float]]]:
        """(place, row, [start, end, score]) of every line; an empty number is NaN."""
        reader = csv.DictReader(io.StringIO(self.text, newline=""))
        try:
            for row in reader:
                place = f"{self.path}:{reader.line_num}"
                try:
                    numbers = [float(row[name]) if row[name] else np.nan for name in WINDOW_COLUMNS[-3:]]
                except (TypeError, ValueError):
                    self.skip(UNREADABLE, place, f"{', '.join(WINDOW_COLUMNS[-3:])} must be numbers")
                else:
                    yield place, row, numbers
        except csv.Error as error:
            raise PredictionError(f"{self.path}:{reader.line_num}: not csv ({error})") from None

    def csv_detections(self) -> pd.DataFrame:
        rows = [(row["video_id"], row["label"], *numbers) for _, row, numbers in self.csv_rows()]
        return pd.DataFrame(rows, columns=DETECTION_COLUMNS)

    def csv_moments(self) -> list[MomentPrediction]:
        found: dict[tuple[str, str, str], tuple[str, list[list[float]]]] = {}
        for place, row, numbers in self.csv_rows():
            _, windows = found.setdefault((row["qid"], row["video_id"], row["query"]), (place, []))
            windows += [numbers] if row["start_seconds"] else []
        return [
            MomentPrediction(qid=qid, video_id=video_id, query=query, windows=_windows(rows), place=place)
            for (qid, video_id, query), (place, rows) in found.items()
        ]


def _windows(rows: Sequence[list[float]]) -> np.ndarray:
    """(N, 3) from as many rows of three numbers. Raises ValueError or TypeError for anything else."""
    windows = np.array(rows, dtype=np.float64)
    if len(rows) and windows.shape != (len(rows), 3):
        raise ValueError
    return windows.reshape(-1, 3)


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[_Reader], pd.DataFrame | list]]] = {
    "ActivityNet JSON": (("tal",), _Reader.detections),
    "QVHighlights JSON lines": (("mr", "hd"), _Reader.moments),
    "AS JSON lines": (("as",), _Reader.frames),
    "csv of detections": (("tal",), _Reader.csv_detections),
    "csv of windows": (("mr",), _Reader.csv_moments),
}
"""Name of each format: the tasks that read it, and how."""
