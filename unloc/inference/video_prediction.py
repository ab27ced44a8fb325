"""What a model found in one video: moments, existence and relevance over time."""

import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from unloc.inference.windows import Curve
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.tasks import task_named


@dataclass(frozen=True, slots=True)
class Moment:
    """A segment in seconds; the score is that of `unloc eval`, NaN for the labels of an AS model."""

    start: float
    end: float
    score: float
    text: str


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """What a model found in one video; a sequence of its moments, best first for each query, or of all classes."""

    video: str  # as it was given
    video_id: str
    duration_seconds: float
    task: str
    texts: tuple[str, ...]  # queries or classes
    moments: tuple[Moment, ...]
    # Of a query: that it is in the video at all, 0-1; without a calibration the best moment's score.
    existence: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None  # of a calibration: below it a query is not in the video
    curves: dict[str, Curve] = field(default_factory=dict)  # relevance over time, where the model looked
    saliency: dict[str, np.ndarray] = field(default_factory=dict)  # of a query, per 2 s clip (HD)
    frames: FramePrediction | None = None  # the labels of an AS model
    how: str = "seen whole"  # or in which windows
    windows: int = 1  # of the video; of a searched one these were ranked for each query
    grounded: int = 1  # windows that the model looked at, for each query
    note: str = ""  # why the answers mean nothing, where that is known
    row: dict = field(default_factory=dict, repr=False)  # what the cache of tokens knows of the file

    def __iter__(self) -> Iterator[Moment]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, index: int) -> Moment:
        return self.moments[index]

    def best(self, top: int = 5, min_score: float | None = None) -> "VideoPrediction":
        """With the `top` moments of each query, or of all classes, that have at least `min_score`; without one, those
        of queries that are in the video by the model's calibration, where it has one. Labels of frames all stay.
        """
        if self.frames is not None:
            return self
        is_query, kept, counts, rejected = task_named(self.task).text_kind == "query", [], Counter(), set()
        if min_score is None and self.threshold is not None:
            rejected = {text for text, score in self.existence.items() if score < self.threshold}
        for moment in self.moments:
            key = moment.text if is_query else None
            is_high = min_score is None or moment.score >= min_score
            if counts[key] < top and is_high and key not in rejected:
                counts[key] += 1
                kept.append(moment)
        return replace(self, moments=tuple(kept))

    def records(self) -> list[MomentPrediction] | list[FramePrediction] | pd.DataFrame:
        """As the field's formats write it (`unloc.predictions.writing`)."""
        if self.frames is not None:
            return [self.frames]
        if task_named(self.task).text_kind == "class":
            return self.to_pandas()
        found = []
        for text in self.texts:
            windows = [(one.start, one.end, one.score) for one in self.moments if one.text == text]
            stated = {"existence": None if self.threshold is None else self.existence[text]}
            stated |= {"saliency": self.saliency.get(text)}
            named = {"qid": "", "video_id": self.video_id, "query": text}
            found.append(MomentPrediction(**named, windows=np.reshape(windows, (-1, 3)), **stated))
        return found

    def to_pandas(self) -> pd.DataFrame:
        """A row for each moment: video_id, label (query or class), start_seconds, end_seconds, score."""
        return detections_table((self.video_id, one.text, one.start, one.end, one.score) for one in self.moments)

    def show(self) -> object:
        """A picture: for each text its relevance over time and its moments. Shown in a notebook, and returned."""
        from matplotlib.figure import Figure  # here: it takes 0.7 s

        texts = [text for text in self.texts if any(one.text == text for one in self.moments)] or self.texts[:1]
        figure = Figure(figsize=(9, 0.6 + 1.1 * len(texts)), layout="constrained")
        for axes, text in zip(figure.subplots(len(texts), sharex=True, squeeze=False)[:, 0], texts, strict=True):
            if text in self.curves:
                axes.plot(self.curves[text].times_seconds, self.curves[text].relevance, linewidth=1)
            for one in (one for one in self.moments if one.text == text):
                opacity = 0.15 if np.isnan(one.score) else 0.1 + 0.4 * min(1, abs(one.score))
                axes.axvspan(one.start, one.end, alpha=opacity)
            axes.set(title=text.replace("$", r"\$"), xlim=(0, self.duration_seconds))
        axes.set_xlabel(f"seconds of {self.video_id}".replace("$", r"\$"))
        if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
            from IPython.display import Image, display

            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            display(Image(picture.getvalue()))
        return figure
