"""Moments for other tools: csv, subtitles, chapters, Label Studio's timeline labels, FiftyOne's temporal detections."""

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.own import Media, video_id_of
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.files import write_file
from unloc.predictions.records import FramePrediction, MomentPrediction

TOOLS = ("csv", "srt", "vtt", "labelstudio", "fiftyone")
SPAN_COLUMNS = ["video", "kind", "text", "start", "end", "score", "split"]
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # not allowed in XML


def spans_of(found: pd.DataFrame | Sequence[MomentPrediction | FramePrediction] | Manifest) -> pd.DataFrame:
    """`SPAN_COLUMNS` of every segment of predictions or of a manifest: kind is label or query, times are seconds; runs
    of equal frames are segments; annotations and frames have the score NaN. Times that are not finite are left out,
    control characters and surplus blanks are removed from texts.
    """
    rows: list[tuple] = []
    if isinstance(found, Manifest):
        for row in found.queries.to_dict("records"):
            rows += [(row["video_id"], "query", row["text"], *one, math.nan, row["split"]) for one in row["segments"]]
        for video_id, split, label, start, end, _ in found.instances.itertuples(index=False):
            rows.append((video_id, "label", label, start, end, math.nan, split))
    elif isinstance(found, pd.DataFrame):
        rows = [(video_id, "label", *rest, "") for video_id, *rest in found.itertuples(index=False)]
    else:
        for item in found:
            if isinstance(item, MomentPrediction):
                rows += [(item.video_id, "query", item.query, *window, "") for window in item.windows.tolist()]
            else:
                rows += [(item.video_id, "label", *segment, math.nan, "") for segment in item.segments()]
    table = pd.DataFrame(rows, columns=SPAN_COLUMNS)
    table = table[np.isfinite(table[["start", "end"]].astype(float)).all(axis=1)].dropna(subset=["text"])
    table["text"] = table["text"].map(lambda text: " ".join(_CONTROL.sub(" ", text).split()))
    return table.sort_values(["video", "start", "end"], kind="stable")


def best_spans(spans: pd.DataFrame, top: int, min_score: float) -> pd.DataFrame:
    """The `top` spans of each query in a video, and of all labels of a video, with at least that score; those without a
    score stay.
    """
    scored = spans[spans["score"] >= min_score].sort_values("score", ascending=False, kind="stable")
    query = scored["text"].where(scored["kind"] == "query")
    best = scored.groupby(["video", query], dropna=False).head(top)
    return spans[spans["score"].isna() | spans.index.isin(best.index)]


def export_spans(tool: str, spans: pd.DataFrame, out: Path, media: Media) -> list[Path]:
    """The files written: csv and FiftyOne's labels.json at `out`; srt and vtt there for one video, else below it one a
    video; for Label Studio tasks.json and config.xml below it. Raises InputError for an unknown tool or no spans,
    ManifestError where a frame rate is unknown.
    """
    if tool not in TOOLS or spans.empty:
        expected = f"expected one of {', '.join(TOOLS)}, got {tool!r}"
        raise InputError(f"{out}: no segment to write" if tool in TOOLS else f"unloc data export: {expected}")
    by_video = {video_id: own.to_dict("records") for video_id, own in spans.groupby("video")}
    if tool == "csv":
        content = {out: _csv(spans)}
    elif tool in ("srt", "vtt"):
        alone = len(by_video) == 1 and out.suffix.lower() == f".{tool}"
        content = {}
        for video_id, own in by_video.items():
            name = re.sub(r"[^a-zA-Z0-9_.-]|^[.]", "_", video_id)
            content[out if alone else out / f"{name}.{tool}"] = _cues(tool, own)
        if len(content) < len(by_video):
            raise InputError(f"{out}: some video ids make the same file name; export these videos one by one")
    elif tool == "fiftyone":
        found = {video_id_of(_file(video_id, media)): _detections(own, media) for video_id, own in by_video.items()}
        content = {out if out.suffix.lower() == ".json" else out / "labels.json": _json({"labels": found})}
    else:
        tasks = [_task(own, media) for own in by_video.values()]
        rates = {task["data"]["fps"] for task in tasks}
        content = {out / "tasks.json": _json(tasks), out / "config.xml": labeling_config(spans, rates)}
    for path, text in content.items():
        write_file(path, text)
    return list(content)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _csv(spans: pd.DataFrame) -> str:
    """A line a span, as `unloc data convert csv` reads it; columns that are empty throughout are left out."""
    texts = {kind: spans["text"].where(spans["kind"] == kind) for kind in ("label", "query")}
    texts["split"] = spans["split"].where(spans["split"] != "")
    table = spans.assign(**texts)[["video", "start", "end", "label", "query", "score", "split"]]
    return table.dropna(axis=1, how="all").to_csv(index=False, lineterminator="\n")


def _cues(tool: str, spans: list[dict]) -> str:
    """Numbered subtitles, or chapters, in which the characters of markup are escaped."""
    cues, mark = ["WEBVTT\n"] if tool == "vtt" else [], "." if tool == "vtt" else ","
    for number, span in enumerate(spans, start=1):
        times = []
        for seconds in (span["start"], span["end"]):
            minutes, rest = divmod(round(1000 * max(0.0, seconds)), 60_000)
            times.append(f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}")
        text = escape(span["text"], quote=False) if tool == "vtt" else span["text"]
        cues.append(("" if tool == "vtt" else f"{number}\n") + f"{' --> '.join(times)}\n{text}\n")
    return "\n".join(cues)


def _file(video_id: str, media: Media) -> str:
    """The video's path below the folder of videos, where it is known, else its id."""
    path = media.index.find(video_id) if media.index is not None else None
    return path.relative_to(media.videos).as_posix() if isinstance(path, Path) else video_id


def _detections(spans: list[dict], media: Media) -> list[dict]:
    """FiftyOne's frame f of N is at (f - 1) / (N - 1) of the video."""
    rate, last, found = *media.fiftyone_frames(spans[0]["video"], spans[0]["video"]), []
    for span in spans:
        support = [min(last, round(max(0.0, seconds) * rate) + 1) for seconds in (span["start"], span["end"])]
        attributes = {"kind": span["kind"]} | ({"split": span["split"]} if span["split"] else {})
        item = {"label": span["text"], "support": support, "attributes": attributes}
        found.append(item | ({} if math.isnan(span["score"]) else {"confidence": span["score"]}))
    return found


def _task(spans: list[dict], media: Media) -> dict:
    """A task of Label Studio with its segments as a prediction, which annotators correct."""
    video_id, results = spans[0]["video"], []
    rate = media.rate(video_id, video_id)
    for number, span in enumerate(spans):
        start = max(1, round(span["start"] * rate) + 1)
        region = {"ranges": [{"start": start, "end": max(start, round(span["end"] * rate))}]}
        result = {"id": f"span{number}", "from_name": span["kind"], "to_name": "video", "type": "timelinelabels"}
        result |= {"value": region | {"timelinelabels": [span["text"]]}}
        results.append(result | ({} if math.isnan(span["score"]) else {"score": span["score"]}))
    data = {"video": f"/data/local-files/?d={_file(video_id, media)}", "video_id": video_id, "fps": rate}
    data |= {"split": spans[0]["split"]} if spans[0]["split"] else {}
    return {"data": data, "predictions": [{"model_version": "unloc", "result": results}]}


def labeling_config(spans: pd.DataFrame, rates: set[float]) -> str:
    """Label Studio's labeling configuration: a timeline of the labels, one of the queries, frames at the right rate."""
    rate = f"{min(rates):.10g}" if len(rates) == 1 else "$fps"
    lines = ["<View>", f'  <Video name="video" value="$video" framerate="{rate}" timelineHeight="120"/>']
    for kind, texts in spans.groupby("kind")["text"]:
        labels = [f'    <Label value="{escape(text)}"/>' for text in sorted(set(texts))]
        lines += [f'  <TimelineLabels name="{kind}" toName="video">', *labels, "  </TimelineLabels>"]
    return "\n".join([*lines, "</View>", ""])
