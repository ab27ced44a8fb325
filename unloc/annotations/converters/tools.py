"""Label Studio's timeline labels and FiftyOne's temporal detections, as `unloc data export` writes them and as they are
exported there: frames count from 1, and the last one belongs to the segment.
"""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from unloc.annotations.own import Event, Media, rows_of, video_id_of
from unloc.annotations.reading import files_below, is_number, read_json, typed
from unloc.annotations.schema import Rows
from unloc.errors import ManifestError

REGION = {"ranges": list[{"start": float, "end": float}], "timelinelabels": list[str]}
DETECTIONS = {"classes": list[object] | None, "labels": dict[str, object]}
DETECTION = {"label": object, "support": list[float] | None, "timestamps": list[float] | None}
DETECTION |= {"attributes": dict[str, object] | None}
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # that Label Studio puts before the name of an uploaded file


def label_studio(paths: list[Path], split: str | None, media: Media) -> Rows:
    """JSON or JSON-MIN exports; of a task the last annotation that was not skipped, else its predictions. Segments of a
    control called `query…` are sentences. Frame rates are those of --fps, of the task's `fps`, or measured; raises
    ManifestError where one is unknown.
    """
    events = []
    for path in files_below(paths, "*.json"):
        for number, task in enumerate(read_json(list[dict[str, object]], path, media.problems)):
            place = f"{path}[{number}]"
            data = task["data"] if isinstance(task.get("data"), dict) else task
            texts = {key: value for key, value in data.items() if isinstance(value, str)}
            videos = (v for k, v in texts.items() if "video" in k.lower() or video_id_of(v) != Path(v).name)
            video = data.get("video_id") or next(videos, None)
            if not isinstance(video, str):
                raise ManifestError(f"{place}: no video in this task; expected data.video, its file or URL")
            if "video_id" not in data:
                address = urlsplit(video)
                video = UPLOADED.sub("", Path(parse_qs(address.query).get("d", [address.path])[0]).name)
            known = {"place": place, "video": video, "split": str(data.get("split") or "")}
            events.append(Event(**known))
            stated = [rate for rate in (media.fps, data.get("fps")) if is_number(rate) and rate > 0]
            for control, region in _regions(task, place, media):
                rate = stated[0] if stated else media.rate(video_id_of(video), place)
                media.problems.add("task without fps: the video's own frame rate is used", place, not stated)
                kind = "query" if control.lower().startswith("quer") else "label"
                for span in region["ranges"]:
                    segment = [(span["start"] - 1) / rate, span["end"] / rate]
                    events += [Event(**known, segment=segment, **{kind: text}) for text in region["timelinelabels"]]
    return rows_of(events, split, media)


def _objects(value: object) -> list[dict]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _regions(task: dict, place: str, media: Media) -> list[tuple[str, dict]]:
    """(name of its control, region) of every timeline label of a task."""
    found = [(name, one) for name, value in task.items() for one in _objects(value) if "timelinelabels" in one]  # MIN
    for kind in ("annotations", "predictions"):
        results = [one for one in _objects(task.get(kind)) if not one.get("was_cancelled")]
        if results and not found:
            media.problems.add(f"task with several {kind}: the last is used", place, len(results) > 1)
            media.problems.add("task without annotations: its predictions are used", place, kind == "predictions")
            regions = _objects(results[-1].get("result"))
            values = [(str(one.get("from_name") or ""), one.get("value")) for one in regions]
            found = [(name, one) for name, one in values if isinstance(one, dict) and "timelinelabels" in one]
            media.problems.add("region that is no timeline label: left out", place, len(regions) - len(found))
            break
    return [(control, typed(REGION, region, f"{place}: timeline label")) for control, region in found]


def fiftyone(paths: list[Path], split: str | None, media: Media) -> Rows:
    """labels.json of a FiftyOneTemporalDetectionDataset: {"labels": {video: [{label, support | timestamps}, …]}}. Frame
    f of N is at (f - 1) / (N - 1) of the measured video, with --fps at (f - 1) / fps. An attribute `kind: query` marks
    a sentence, `split` states that of the video.
    """
    events = []
    for path in files_below(paths, "labels.json", "*.json"):
        content = read_json(DETECTIONS, path, media.problems)
        for video, listed in content["labels"].items():
            place = f"{path}: labels[{video!r}]"
            items = typed(list[DETECTION] | None, listed, place) or []
            attributes = [item["attributes"] or {} for item in items]
            split_of_video = next((one["split"] for one in attributes if isinstance(one.get("split"), str)), "")
            known = {"video": video, "split": split_of_video}
            events.append(Event(place=place, **known))
            for number, item in enumerate(items):
                where, label = f"{place}[{number}]", item["label"]
                if isinstance(label, int) and content["classes"] and 0 <= label < len(content["classes"]):
                    label = content["classes"][label]
                segment = item["timestamps"]
                if segment is None and item["support"]:
                    rate, _ = media.fiftyone_frames(video_id_of(video), where)
                    segment = [(frame - 1) / rate for frame in item["support"]]
                if not isinstance(label, str) or not label or len(segment or ()) != 2:
                    raise ManifestError(f"{where}: expected a label and support [first, last] in frames, or timestamps")
                kind = "query" if attributes[number].get("kind") == "query" else "label"
                events.append(Event(place=where, segment=segment, **known, **{kind: label}))
    return rows_of(events, split, media)
