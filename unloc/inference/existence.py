"""Is a query in the video at all? A score from 0 to 1 and a threshold, fitted on validation (`calibrate`)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from unloc.errors import InputError, one_line
from unloc.files import write_file
from unloc.inference.similarity import similarity_to

CALIBRATION = "calibration.json"  # next to a checkpoint: one entry for each task of sentences


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A logistic function of the `evidence`, and the score from which a query counts as in the video."""

    weights: tuple[float, ...]
    bias: float
    background: tuple[float, ...]  # (D,) mean of all frames of validation, each of length 1
    threshold: float
    fitted_on: dict = field(default_factory=dict)  # split, number of pairs, and what the threshold keeps and rejects

    def score(self, best_score: float, frames: np.ndarray, text: np.ndarray) -> float:
        """The probability, were half of all queries in their video; arguments as of `evidence`."""
        found = evidence(best_score, frames, text, np.asarray(self.background))
        return float(1.0 / (1.0 + np.exp(-(found @ np.asarray(self.weights) + self.bias))))


def evidence(best_score: float, frames: np.ndarray, text: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(3,) of the best moment's score, frame tokens (T, D), text tokens (K, D) and background (D,): the logit of the
    score, of at least 0.001; the cosine of the text's EOS with the three most similar frames, and with all, above that
    with the background: some texts are near to every frame. Where tokens do not compare, 0 and 0.
    """
    best = float(np.clip(best_score, 1e-3, 1 - 1e-6))
    if not frames.shape[1] == text.shape[1] == len(background):
        return np.array([np.log(best / (1 - best)), 0.0, 0.0])
    similarity, eos = similarity_to(frames, text[-1:])[:, 0], text[-1].astype(np.float64)
    usual = background @ eos / max(float(np.linalg.norm(eos)), 1e-8)
    return np.array([np.log(best / (1 - best)), np.sort(similarity)[-3:].mean() - usual, similarity.mean() - usual])


def mean_direction(frames: np.ndarray) -> np.ndarray:
    """(D,) mean of frames (T, D), each of length 1."""
    frames = frames.astype(np.float32)
    return (frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-8)).mean(axis=0, dtype=np.float64)


def best_score(windows: np.ndarray) -> float:
    """Of moments (N, 3), best first; 0 without any."""
    return float(windows[0, 2]) if len(windows) else 0.0


def write_calibration(folder: Path, task: str, calibration: Calibration) -> None:
    """Write or replace the calibration of one task of a checkpoint."""
    known = json.loads((folder / CALIBRATION).read_text(encoding="utf-8")) if (folder / CALIBRATION).is_file() else {}
    write_file(folder / CALIBRATION, json.dumps(known | {task: asdict(calibration)}, indent=1) + "\n")


def read_calibration(folder: Path, task: str) -> Calibration | None:
    """The calibration of a task, where the checkpoint has one. Raises InputError where the file is damaged."""
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8")).get(task)
        lists = {key: tuple(map(float, values[key])) for key in ("weights", "background")} if values else {}
        return values and Calibration(**values | lists)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); delete it to go without a calibration") from None
