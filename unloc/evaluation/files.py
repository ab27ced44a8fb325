"""Files of an evaluation: the predictions it reads, with what metrics.json states about them, and what it writes."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.analysis import write_plots
from unloc.evaluation.evaluator import Predictions
from unloc.evaluation.screening import require_match, screen_predictions
from unloc.files import file_sha256, write_file
from unloc.predictions.reading import PredictionFile, read_predictions
from unloc.predictions.records import StoredScores

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

    def description(self, by_command: bool) -> dict:
        """Formats, hashes and problems of the files, and who states that labels of another model were used."""
        stated = [file.external_labels for file in self.files.values() if file.external_labels is not None]
        hashes, first = {str(path): file_sha256(path) for path in self.files}, self.problems.first
        by_file = "by the file" if stated else "nowhere"
        return {
            "predictions_format": ", ".join(dict.fromkeys(file.format for file in self.files.values())),
            "predictions_sha256": hashes if len(hashes) > 1 else next(iter(hashes.values()), None),
            "scores_sha256": {path.name: file_sha256(path) for path in sorted(self.score_files)},
            "external_labels": by_command or any(stated),
            "external_labels_stated": "by the command" if by_command and not any(stated) else by_file,
            "bad_predictions": {kind: [number, first[kind]] for kind, number in self.problems.counts.items()},
        }


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
        known, target = _record(path.parent), path.resolve()
        if target in self._inputs:
            reason = "is an input of this evaluation"
        elif target in (other.resolve() for other in self._paths):
            reason = "is another output of this evaluation too"
        elif path.is_dir() or path.name == RECORD:
            reason = "is a folder" if path.is_dir() else "is a record of eval"
        elif path.is_symlink() or (path.exists() and known.get(path.name, "") not in (None, file_sha256(path))):
            reason = "exists, and unloc eval did not write it (or it was changed since)"
        else:
            self._paths.append(path)
            return path
        raise InputError(f"{option} {path} {reason}; name another file")

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


def write_report(report: dict, path: Path) -> None:
    """Write metrics.json and the plots of an analysis; undefined figures and the open end of a bin are null."""
    if "analysis" in report:
        plots = write_plots(report["analysis"], path.parent / "analysis")
        report["analysis"]["plots"] = [str(plot.relative_to(path.parent)) for plot in plots]
    without_nan = json.loads(json.dumps(report), parse_constant=lambda _: None)
    text = json.dumps(without_nan, indent=1, ensure_ascii=False)
    write_file(path, f"{text}\n".encode("utf-8", "backslashreplace"))
