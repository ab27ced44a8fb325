"""Predictions from files in the field's own formats, recognised by their content; plain, gzipped or in a zip.

Without a log of problems, an entry that cannot be read raises an error; with one it is logged and skipped.
"""

import csv
import difflib
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.reading import Name, Problems, brief, parse_json, read_as
from unloc.errors import ManifestError, MissingError, PredictionError
from unloc.predictions.records import (
    DETECTION_COLUMNS,
    WINDOW_COLUMNS,
    FramePrediction,
    MomentPrediction,
    StoredScores,
    detections_table,
)

_MOMENT_KEYS, _FRAME_KEYS = "qid|vid|pred_relevant_windows|pred_saliency_scores", "video_id|times_seconds|fps|labels"
_FIRST_KEY = re.compile(rf'"(?:(results)|({_MOMENT_KEYS})|({_FRAME_KEYS}))"\s*:')
_FRAMES = {"video_id": Name, "labels": list[str | None], "times_seconds": list[float] | None}
_FRAMES |= {"fps": float | None, "scores_file": str | None}
_LIST_OF_OBJECTS = re.compile(r":\s*\[\s*[{\]]")


@dataclass(frozen=True, kw_only=True)
class PredictionFile:
    """The content of a file."""

    format: str  # its name, and how it was packed
    task: str  # that it was read for
    predictions: pd.DataFrame | list[MomentPrediction] | list[FramePrediction]
    external_labels: bool | None  # does it say that external data were used? None where the format does not say


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, and not predictions."""
    with suppress(OSError), path.open("rb") as file:
        return b'"kind": "manifest"' in file.read(200)
    return False


def read_predictions(
    path: Path | str, task: str | None, *, split: str | None = None, problems: Problems | None = None
) -> PredictionFile:
    """Predictions of a file for a task, by default the first that its format serves; in a zip of several files the one
    that names the split. Raises MissingError where the file is absent, PredictionError with the place of what cannot be
    read, or for a format that the task does not read.
    """
    path = Path(path)
    text, packing = _unpacked_text(path, split)
    head = text[:100_000].lstrip()
    if head.startswith("{") and (key := _FIRST_KEY.search(head)):
        name = ("ActivityNet JSON", "QVHighlights JSON lines", "AS JSON lines")[key.lastindex - 1]
    else:
        columns = set(next(csv.reader([head.split("\n", 1)[0].strip()]), []))
        forms = {"csv of detections": DETECTION_COLUMNS, "csv of windows": WINDOW_COLUMNS}
        name = next((form for form, wanted in forms.items() if columns.issuperset(wanted)), None)
        if name is None:
            problem = f"not a known format of predictions (starts with {head[:40]!r})" if head else "is empty"
            raise PredictionError(f"{path}: {problem}; expected {', '.join(_FORMATS)}")
    tasks, read = _FORMATS[name]
    task = task or tasks[0]
    if task not in tasks:
        others = " or ".join(other for other, (tasks, _) in _FORMATS.items() if task in tasks)
        raise PredictionError(f"{path}: holds {name}; --task {task} reads {others}")
    reader = _Reader(path, text, task, problems)
    found = {"format": name + packing, "task": task, "predictions": read(reader)}
    return PredictionFile(**found, external_labels=reader.external_labels)


def _unpacked_text(path: Path, split: str | None) -> tuple[str, str]:
    """(text, how it was packed) of a file that may be gzipped or in a zip."""
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
    except (EOFError, RuntimeError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        # RuntimeError: a zip with a password or an unknown compression.
        raise PredictionError(f"{path}: cannot be unpacked ({error}); is the file cut off or encrypted?") from None


@dataclass
class _Reader:
    """Reads one file; a method for each format."""

    path: Path
    text: str
    task: str
    problems: Problems | None
    external_labels: bool | None = None

    def skip(self, message: str, kind: str = "unreadable entry: left out") -> None:
        """Log an entry that cannot be read; without a log, raise PredictionError."""
        if self.problems is None:
            raise PredictionError(message)
        self.problems.add(kind, message)

    def detections(self) -> pd.DataFrame:
        """Of an ActivityNet submission."""
        try:
            content = parse_json(self.text, str(self.path))
        except ManifestError as error:
            raise PredictionError(str(error)) from None
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict):
            raise PredictionError(f'{self.path}: expected an ActivityNet submission, {{"results": {{video_id: […]}}}}')
        # A hook for every object would double the reading time: it runs only where there are more lists than videos.
        if self.problems is not None and len(_LIST_OF_OBJECTS.findall(self.text)) != len(results):
            repeated, kind = Problems(), "duplicate id: of a video that occurs twice the last list counts"
            parse_json(self.text, str(self.path), repeated)
            for key, count in repeated.counts.items():
                self.problems.add(kind, repeated.places[key][0], count)
        external = content.get("external_data")
        used = external.get("used") if isinstance(external, dict) else None
        self.external_labels = None if used is None else bool(used)
        rows = []
        for video_id, items in results.items():
            place = f"{self.path}: results[{video_id!r}]"
            if not isinstance(items, list):
                self.skip(f"{place}: expected a list, got {brief(items)}")
                continue
            if not items and self.problems is not None:
                self.problems.add("empty list: nothing predicted", place)
            for index, item in enumerate(items):
                try:
                    segment = item.get("segment", [0.0, 0.0]) if self.task == "cls" else item["segment"]
                    start, end = segment if isinstance(segment, list) else ()
                    numbers = [np.nan if number is None else float(number) for number in (start, end, item["score"])]
                    rows.append((video_id, str(item["label"]), *numbers))
                except (TypeError, KeyError, ValueError, OverflowError):
                    expected = "expected a label, a score and a segment [start, end]"
                    self.skip(f"{place}[{index}]: {expected}, got {brief(item)}")
        return detections_table(rows)

    def json_lines(self) -> Iterator[tuple[str, dict]]:
        """(place, object) of every line; of NA-VMR's {"preds": [object, …]} every object."""
        # Not splitlines: a sentence may hold other line separators (U+2028) that JSON leaves as they are.
        is_one = re.match(r'\s*\{\s*"preds"', self.text)
        for number, line in enumerate([self.text] if is_one else self.text.split("\n"), start=1):
            place = f"{self.path}:{number}"
            if not line.strip():
                continue
            try:
                row = parse_json(line, place)
            except ManifestError as error:
                self.skip(str(error), "line that is not JSON (cut off?): left out")
                continue
            listed = isinstance(row, dict) and isinstance(row.get("preds"), list)
            rows = {f"{place}: preds[{i}]": one for i, one in enumerate(row["preds"])} if listed else {place: row}
            for place, one in rows.items():
                if isinstance(one, dict):
                    yield place, one | ({"preds": True} if listed else {})
                else:
                    self.skip(f"{place}: expected an object, got {type(one).__name__}")

    def moments(self) -> list[MomentPrediction]:
        """Of QVHighlights' lines, or of those of GMR and NA-VMR."""
        predictions = []
        keys = ("pred_relevant_windows", "pred_saliency_scores") if self.task == "hd" else ("pred_relevant_windows",)
        for place, row in self.json_lines():
            for key in keys:
                similar = difflib.get_close_matches(key, row, n=1, cutoff=0.7) if key not in row else []
                if similar and self.problems is not None:
                    self.problems.add(f"key {similar[0]!r} looks like {key}: not read", place)
            is_named = "vid" in row or self.task == "rejection"  # as officially, a qid is enough
            if not is_named or ("qid" not in row and "query" not in row):
                self.skip(f"{place}: needs vid, and qid or query; it has {', '.join(row) or 'nothing'}")
                continue
            qid, saliency = row.get("qid", ""), row.get("pred_saliency_scores")
            try:
                given = [window[:3] for window in row.get("pred_relevant_windows") or []]
                if self.task == "rejection":  # windows may lack a score
                    given = [[*window, np.nan][:3] for window in given]
                windows = np.array(given, dtype=np.float64)
                if given and windows.shape != (len(given), 3):
                    raise ValueError
                if saliency is not None:
                    saliency = np.array(saliency, dtype=np.float64).reshape(len(saliency))
            except (TypeError, ValueError, KeyError, OverflowError):
                self.skip(f"{place}: windows must be [start, end, score] and saliency a list of numbers")
                continue
            if isinstance(qid, float) and qid.is_integer():
                qid = int(qid)  # some tables of numbers turn 7 into 7.0
            try:
                existence = float(row.get("pred_exist_score", row.get("pred_class")))
            except (TypeError, ValueError, OverflowError):
                existence = None
            names = {"qid": str(qid), "video_id": str(row.get("vid") or ""), "query": str(row.get("query") or "")}
            stated = {"saliency": saliency, "existence": existence, "by_line": "preds" in row, "place": place}
            predictions.append(MomentPrediction(**names, windows=windows.reshape(-1, 3), **stated))
        return predictions

    def frames(self) -> list[FramePrediction]:
        """Of lines as `write_frames` makes them."""
        predictions, sidecars = [], {}
        for place, row in self.json_lines():
            try:
                given = read_as(_FRAMES, row)
                name = given.pop("scores_file")
                item = FramePrediction(**given, place=place)
            except ValueError as error:
                self.skip(f"{place}: {error}")
                continue
            predictions.append(replace(item, scores=self.stored_scores(item, name, sidecars) if name else None))
        return predictions

    def stored_scores(self, item: FramePrediction, name: str, sidecars: dict) -> StoredScores | None:
        """The scores of a video in its .npz; only their header is read now."""
        path = self.path.parent / name
        if not path.is_file():
            raise MissingError(f"{item.place}: scores file {path} does not exist")
        try:
            if path not in sidecars:
                sidecars[path] = np.load(path, allow_pickle=False)
                if not isinstance(sidecars[path], Mapping):
                    raise ValueError("it holds one array; expected an .npz with one per video")
            if item.video_id not in sidecars[path]:
                return None
            with sidecars[path].zip.open(f"{item.video_id}.npy") as member:
                np.lib.format.read_magic(member)
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)  # the version of arrays of numbers
            if not np.issubdtype(dtype, np.number):
                raise ValueError(f"{item.video_id} holds {dtype}, expected numbers")
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise PredictionError(f"{item.place}: scores file {path.name} cannot be read ({error})") from None
        return StoredScores(sidecars[path], item.video_id, shape)

    def csv_rows(self) -> Iterator[tuple[str, dict[str, str], list[float]]]:
        """(place, row, [start, end, score]) of every line; an empty number is NaN."""
        reader, names = csv.DictReader(io.StringIO(self.text, newline="")), WINDOW_COLUMNS[-3:]
        try:
            for row in reader:
                place = f"{self.path}:{reader.line_num}"
                try:
                    numbers = [float(row[name]) if row[name] else np.nan for name in names]
                except (TypeError, ValueError):
                    self.skip(f"{place}: {', '.join(names)} must be numbers")
                else:
                    yield place, row, numbers
        except csv.Error as error:
            raise PredictionError(f"{self.path}:{reader.line_num}: not csv ({error})") from None

    def csv_detections(self) -> pd.DataFrame:
        return detections_table((row["video_id"], row["label"], *numbers) for _, row, numbers in self.csv_rows())

    def csv_moments(self) -> list[MomentPrediction]:
        """A line for each window; one without numbers is a query without windows."""
        found: dict[tuple[str, str, str], tuple[str, list[list[float]]]] = {}
        for place, row, numbers in self.csv_rows():
            _, windows = found.setdefault((row["qid"], row["video_id"], row["query"]), (place, []))
            windows += [numbers] if row["start_seconds"] else []
        return [
            MomentPrediction(qid=qid, video_id=video_id, query=query, windows=np.reshape(rows, (-1, 3)), place=place)
            for (qid, video_id, query), (place, rows) in found.items()
        ]


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[_Reader], pd.DataFrame | list]]] = {  # tasks that read it, and how
    "ActivityNet JSON": (("tal", "cls"), _Reader.detections),
    "QVHighlights JSON lines": (("mr", "hd", "rejection"), _Reader.moments),
    "AS JSON lines": (("as",), _Reader.frames),
    "csv of detections": (("tal", "cls"), _Reader.csv_detections),
    "csv of windows": (("mr",), _Reader.csv_moments),
}
