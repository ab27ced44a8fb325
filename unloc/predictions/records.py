"""Predictions in memory: moments of queries, labelled segments of videos (a table), labels of frames."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd

from unloc.errors import InputError

DETECTION_COLUMNS = ["video_id", "label", "start_seconds", "end_seconds", "score"]
WINDOW_COLUMNS = ["qid", "video_id", "query", "start_seconds", "end_seconds", "score"]


def detections_table(rows: Iterable[tuple[str, str, float, float, float]]) -> pd.DataFrame:
    """Rows (video_id, label, start, end, score) as a table."""
    table = pd.DataFrame(list(rows), columns=DETECTION_COLUMNS, dtype=object)
    return table.astype(dict.fromkeys(DETECTION_COLUMNS[2:], np.float64))


@dataclass(frozen=True, kw_only=True)
class MomentPrediction:
    """Windows (and saliency) for one query of one video."""

    qid: str
    video_id: str
    query: str
    windows: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) start, end, score in file order
    existence: float | None = None  # that the query happens in the video at all, where it is stated
    by_line: bool = False  # from a file of NA-VMR: its place among the predictions is that of its query
    saliency: np.ndarray | None = None  # one score per 2 s clip, where there is saliency
    place: str = field(default="", compare=False)  # file and line it was read from


@dataclass(frozen=True)
class StoredScores:
    """Class scores of one video that stay in their .npz until numpy reads them; all at once may not fit into memory."""

    file: np.lib.npyio.NpzFile
    video_id: str
    shape: tuple[int, ...]
    finite: bool = False  # whether numbers that are not finite are replaced by the lowest of the video

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        scores = self.file[self.video_id]
        if self.finite and not (kept := np.isfinite(scores)).all():
            scores = np.where(kept, scores, scores[kept].min() if kept.any() else 0.0)
        return scores if dtype is None else scores.astype(dtype)


@dataclass(frozen=True, kw_only=True)
class FramePrediction:
    """Labels of one video, with either the time at which each begins or a stated rate. Raises InputError otherwise."""

    video_id: str
    labels: list[str | None]  # class name, or None for background
    times_seconds: np.ndarray | None = None
    """(num_labels,) rising: a label lasts from its time to the next, the first from the start, the last to the end."""
    fps: float | None = None  # stated by a file of others: label k lasts from k / fps to (k + 1) / fps
    scores: np.ndarray | StoredScores | None = None  # (num_labels, num_classes), in the manifest's class order
    place: str = field(default="", compare=False)  # file and line it was read from

    def __post_init__(self) -> None:
        where = f"labels of {self.video_id}"
        if (self.times_seconds is None) == (self.fps is None):
            raise InputError(f"{where}: expected either times_seconds or fps")
        if self.fps is not None and not 0 < self.fps < 1000:
            raise InputError(f"{where}: fps {self.fps} must be above 0 and below 1000")
        if self.times_seconds is not None:
            times = np.asarray(self.times_seconds, dtype=np.float64)
            if times.shape != (len(self.labels),) or not np.isfinite(times).all():
                raise InputError(f"{where}: expected one finite time for each of {len(self.labels)} labels")
            falling = np.flatnonzero(np.diff(times) <= 0)
            if len(falling):
                time, following = times[falling[0] : falling[0] + 2]
                raise InputError(f"{where}: times_seconds must rise; {following:g} follows {time:g}")
            object.__setattr__(self, "times_seconds", times)

    def edges(self, duration_seconds: float) -> np.ndarray:
        """(num_labels + 1,) seconds: label k lasts from edge k to edge k + 1. The last one lasts as long as the one
        before it, at most a second, even where the video ends earlier: official frames at its end count whole.
        """
        if self.fps is not None:
            return np.arange(len(self.labels) + 1) / self.fps
        starts = self.times_seconds.clip(min=0.0)
        starts[:1] = 0.0
        last_seconds = np.diff(starts[-2:]).clip(max=1.0).sum()
        return np.append(starts, max(duration_seconds, starts[-1] + last_seconds) if len(starts) else 0.0)

    def segments(self, duration_seconds: float = 0.0) -> list[tuple[str, float, float]]:
        """(label, start, end) of every run of equal labels but background, in seconds as `edges`."""
        edges, after, found = self.edges(duration_seconds).tolist(), 0, []
        for label, run in groupby(self.labels):
            first, after = after, after + len(list(run))
            found += [] if label is None else [(label, edges[first], edges[after])]
        return found
