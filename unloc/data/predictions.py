"""Predictions in memory: moments of queries, labelled segments of videos, labels of frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

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
    place: str = field(default="", compare=False)
    """File and line it was read from."""


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
    place: str = field(default="", compare=False)
    """File and line it was read from."""


def detections_table(rows: Iterable[tuple[str, str, float, float, float]]) -> pd.DataFrame:
    """Rows (video_id, label, start, end, score) as a table."""
    return pd.DataFrame(list(rows), columns=DETECTION_COLUMNS)


@dataclass
class Problems:
    """What is wrong with a file of predictions: for each kind how often, and where first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Tell one kind; `place` is kept where it is the first."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.first.setdefault(kind, _one_line(place))

    def lines(self) -> Iterator[str]:
        """One line a kind: how often, what becomes of it, and where first."""
        for kind, count in self.counts.items():
            yield f"{count} × {kind} (first: {self.first[kind]})"


def _one_line(words: str) -> str:
    """Line breaks and half characters (lone surrogates) of a foreign file, escaped."""
    return words.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
