"""What a model found in one video, and what becomes of it: JSON and a table to read, files for other tools, clips."""

import io
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.own import Media
from unloc.errors import InputError
from unloc.evaluation.evaluator import Predictions
from unloc.inference.windows import Curve
from unloc.predictions.exporting import export_spans, spans_of
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.predictions.writing import write_detections, write_frames, write_moments
from unloc.tasks import task_named
from unloc.video.clips import cut_clip
from unloc.video.locate import VideoIndex
from unloc.video.video_file import VideoFile, on_disk

FORMATS = {"json": (".json", ".jsonl"), "csv": (".csv",), "srt": (".srt",), "vtt": (".vtt",), "html": (".html",)}
FORMATS |= {"labelstudio": (), "fiftyone": ()}  # folders


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


def format_of(out: Path, stated: str | None) -> str:
    """The format of a file to write, by its ending where none is stated. Raises InputError for an unknown one, or where
    the file is a folder.
    """
    found = stated or next((name for name, endings in FORMATS.items() if out.suffix.lower() in endings), None)
    if found not in FORMATS:
        raise InputError(f"--out {out}: give --format, one of {', '.join(FORMATS)}")
    if out.is_dir() and (found in ("json", "csv", "html") or out.suffix.lower() in FORMATS[found]):
        raise InputError(f"--out {out}: is a folder; name a file, such as {out / f'found.{found}'}")
    return found


def joined_records(found: Sequence[VideoPrediction]) -> Predictions:
    """The predictions of several videos as those of a file."""
    records = [one.records() for one in found]
    if isinstance(records[0], pd.DataFrame):
        return pd.concat(records, ignore_index=True)
    return [item for own in records for item in own]


def write_predictions(found: Sequence[VideoPrediction], files: Sequence[VideoFile], out: Path, kind: str) -> list[Path]:
    """Write the predictions of videos; `json` is what `unloc eval --predictions` reads. Returns the files written.
    Raises InputError where there is nothing to write, or a tool's labels would be of a file at a URL.
    """
    records = joined_records(found)
    if kind == "json":
        write = {"tal": write_detections, "as": write_frames}.get(found[0].task, write_moments)
        write(out, records)
        return [out]
    media = Media()
    if kind in ("labelstudio", "fiftyone"):  # name the files, below the folder that they share
        if remote := next((file for file in files if not isinstance(file, Path)), None):
            raise InputError(f"{remote}: labels for tools are of files of this machine; download it first")
        paths = [file.absolute() for file in files]
        media.videos = Path(os.path.commonpath([path.parent for path in paths]))
        media.index = VideoIndex(((path.relative_to(media.videos), path) for path in paths), media.videos)
    return export_spans(kind, spans_of(records), out, media)


def as_json(one: VideoPrediction) -> dict:
    """A prediction for JSON; times in seconds, the score of a label of an AS model null."""
    queries = []
    for text in one.texts:
        moments = [moment for moment in one.moments if moment.text == text]
        known = {} if text not in one.existence else {"existence": one.existence[text]}
        if moments or known:
            scored = [(one, None if math.isnan(one.score) else one.score) for one in moments]
            rows = [{"start": one.start, "end": one.end, "score": score} for one, score in scored]
            queries.append({"text": text, "found": bool(moments), **known, "moments": rows})
    stated = {"video": one.video, "video_id": one.video_id, "duration_seconds": one.duration_seconds}
    stated |= {"task": one.task, "how": one.how, "windows": one.windows, "grounded": one.grounded}
    return stated | {"threshold": one.threshold, "answers": queries}


def clock(seconds: float) -> str:
    """A time as mm:ss.s, from an hour on h:mm:ss.s."""
    minutes, rest = divmod(round(10 * seconds), 600)
    hours, minutes_left = divmod(minutes, 60)
    text = f"{hours}:{minutes_left:02}" if hours else f"{minutes:02}"
    return f"{text}:{rest // 10:02}.{rest % 10}"


def table_lines(one: VideoPrediction) -> list[str]:
    """A video's moments for a reader."""
    lines = [f"{one.video}  {clock(one.duration_seconds)}, {one.how}"]
    for moment in one.moments:
        score = "     " if math.isnan(moment.score) else f"{moment.score:5.2f}"
        lines.append(f"  {clock(moment.start):>9}  {clock(moment.end):>9}  {score}  {moment.text}")
    answered = {moment.text for moment in one.moments}
    for text, existence in one.existence.items():
        if text not in answered:
            lines.append(f"  not found (existence {existence:.2f}): {text}")
    if not one.moments and not one.existence:
        lines.append("  nothing found")
    return lines


def cut_clips(one: VideoPrediction, file: VideoFile, folder: Path) -> list[Path]:
    """Write each moment of a video as an MP4 named by video, rank and time. Raises VideoError."""
    written = []
    with on_disk(file) as path:
        for rank, moment in enumerate(one.moments, start=1):
            name = f"{one.video_id}_{rank:02}_{moment.start:.1f}-{moment.end:.1f}.mp4"
            cut_clip(path, moment.start, moment.end, folder / name)
            written.append(folder / name)
    return written
