"""What predictions of videos become: JSON and a table to read, files for other tools, clips."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from unloc.annotations.own import Media
from unloc.errors import InputError
from unloc.evaluation.evaluator import Predictions
from unloc.inference.video_prediction import VideoPrediction
from unloc.predictions.exporting import export_spans, spans_of
from unloc.predictions.writing import write_detections, write_frames, write_moments
from unloc.video.clips import cut_clip
from unloc.video.locate import VideoIndex
from unloc.video.video_file import VideoFile, on_disk

FORMATS = {"json": (".json", ".jsonl"), "csv": (".csv",), "srt": (".srt",), "vtt": (".vtt",), "html": (".html",)}
FORMATS |= {"labelstudio": (), "fiftyone": ()}  # folders


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
