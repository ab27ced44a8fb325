"""Files of an evaluation: the predictions it reads, with what metrics.json states about them, and what it writes."""

import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from unloc import __version__
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.evaluator import Predictions
from unloc.evaluation.plots import PLOTS, write_plots
from unloc.evaluation.screening import require_match, screen_predictions
from unloc.files import file_sha256, write_file
from unloc.predictions.reading import PredictionFile, read_predictions
from unloc.predictions.records import StoredScores

VERSIONED = {"numpy": "numpy", "pandas": "pandas", "torch": "torch", "open_clip": "open_clip_torch", "zarr": "zarr"}
RECORD = ".unloc-eval.json"


@dataclass(frozen=True, kw_only=True)
class PredictionFiles:
    """Reads prediction files for one split and collects what metrics.json states about them."""

    task: str
    manifest: Manifest
    split: str
    keep: Callable[[str], bool] = lambda _: True
    """Which videos are scored: predictions of the others are left out, as officially those of blocked videos."""
    problems: Problems = field(default_factory=Problems)
    files: dict[Path, PredictionFile] = field(default_factory=dict)
    """Format and external labels of each file, without its predictions."""
    score_files: set[Path] = field(default_factory=set)
    """The .npz files of class scores that the predictions refer to."""

    def read(self, path: Path) -> tuple[Predictions, Predictions]:
        """The predictions of a file, and those of them that can be scored.

        Raises PredictionError if none belongs to the split, and as `read_predictions`.
        """
        file = read_predictions(path, self.task, split=self.split, problems=self.problems)
        predictions = file.predictions
        if isinstance(predictions, pd.DataFrame):
            predictions = predictions[predictions["video_id"].map(self.keep).astype(bool)].reset_index(drop=True)
        else:
            predictions = [item for item in predictions if self.keep(item.video_id)]
            stored = (getattr(item, "scores", None) for item in predictions)
            self.score_files.update(Path(one.file.fid.name) for one in stored if isinstance(one, StoredScores))
        screened = screen_predictions(self.task, predictions, self.manifest.select(self.split), self.problems)
        require_match(path, self.task, predictions, screened, self.manifest, self.split)
        self.files[path] = replace(file, predictions=[])
        return predictions, screened

    @property
    def formats(self) -> str:
        """The formats of the files."""
        return ", ".join(dict.fromkeys(file.format for file in self.files.values()))

    @property
    def external_labels(self) -> bool | None:
        """Whether any file states that labels of another model were used; None if none states anything."""
        stated = [file.external_labels for file in self.files.values() if file.external_labels is not None]
        return any(stated) if stated else None

    def description(self, by_command: bool) -> dict:
        """Formats, hashes and problems of the files, and who states the use of external labels."""
        external, hashes = self.external_labels, {str(path): file_sha256(path) for path in self.files}
        by_file = "nowhere" if external is None else "by the file"
        return {
            "predictions_format": self.formats,
            "predictions_sha256": hashes if len(hashes) > 1 else next(iter(hashes.values()), None),
            "scores_sha256": {path.name: file_sha256(path) for path in sorted(self.score_files)},
            "external_labels": by_command or bool(external),
            "external_labels_stated": "by the command" if by_command and not external else by_file,
            "bad_predictions": {
                kind: [number, self.problems.first[kind]] for kind, number in self.problems.counts.items()
            },
        }


def provenance(manifest: Path, lists: Iterable[Path] = ()) -> dict:
    """Hashes of the annotations and lists of videos, and versions: all that a figure depends on besides predictions."""
    versions = {name: version(package) for name, package in VERSIONED.items() if name in sys.modules}
    return {
        "annotations_sha256": file_sha256(manifest),
        "video_lists": {str(path): file_sha256(path) for path in lists},
        "versions": {"unloc": __version__, "python": platform.python_version(), **versions},
    }


# -- writing --------------------------------------------------------------------------------------------------------


class Outputs:
    """The files that one evaluation writes: never its inputs, nor files that no evaluation wrote.

    A hidden file `.unloc-eval.json` in each folder keeps their hashes (null while they are written): a later evaluation
    may replace what is listed and unchanged.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._inputs = {path.resolve() for path in inputs}
        self._paths: list[Path] = []

    def add(self, path: Path, option: str) -> Path:
        """The path, if it may be written. Raises InputError if not."""
        if path.resolve() in self._inputs:
            raise InputError(f"{option} {path} is an input of this evaluation; name another file")
        if path.resolve() in (other.resolve() for other in self._paths):
            raise InputError(f"{option} {path} is another output of this evaluation too; name another file")
        if path.is_dir() or path.name == RECORD:
            raise InputError(f"{option} {path} is {'a folder' if path.is_dir() else 'a record of eval'}; name a file")
        known = _record(path.parent)
        ours = path.name in known and (not path.exists() or known[path.name] in (None, file_sha256(path)))
        if path.is_symlink() or (path.exists() and not ours):
            raise InputError(
                f"{option} {path} exists, and unloc eval did not write it (or it was changed since): name another "
                "file, or remove it"
            )
        self._paths.append(path)
        return path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The files are written within this block. Raises InputError if a folder cannot be written."""
        self._update_records(lambda path: None)
        try:
            yield
        finally:
            self._update_records(lambda path: file_sha256(path) if path.is_file() else "")

    def _update_records(self, hash_of: Callable[[Path], str | None]) -> None:
        for folder in {path.parent for path in self._paths}:
            known = _record(folder) | {path.name: hash_of(path) for path in self._paths if path.parent == folder}
            try:
                write_file(folder / RECORD, json.dumps(known, indent=1) + "\n")
            except OSError as error:
                raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None


def _record(folder: Path) -> dict[str, str | None]:
    """Name to hash of the files that evaluations wrote into a folder."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def report_path(out: Path) -> Path:
    """The file that --out names, or metrics.json in the folder that it names."""
    return out if out.suffix == ".json" else out / "metrics.json"


def plot_paths(out: Path) -> list[Path]:
    """The plots of an analysis, in a folder next to the report."""
    return [report_path(out).parent / "analysis" / name for name in PLOTS]


def write_report(report: dict, out: Path) -> None:
    """Write metrics.json, or the file that `out` names, and the plots of an analysis.

    Undefined figures and the open end of a bin are null. Raises InputError if it cannot be written.
    """

    def without_nan(value: object) -> object:
        if isinstance(value, dict):
            return {key: without_nan(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [without_nan(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path = report_path(out)
    try:
        if "analysis" in report:
            plots = write_plots(report["analysis"], path.parent / "analysis")
            report["analysis"]["plots"] = [str(plot.relative_to(path.parent)) for plot in plots]
        text = json.dumps(without_nan(report), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(path, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}") from None
