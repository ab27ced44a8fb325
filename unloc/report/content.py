"""What a page says: of a run its curves, metrics and errors, of predictions a timeline for each video."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from unloc import __version__
from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.evaluation.analysis import analyse
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.evaluator import ALIGN, QUERY_TASKS, bootstrap_intervals
from unloc.evaluation.reopening import Scored, find_report, reopen, run_folder
from unloc.evaluation.screening import Predictions
from unloc.evaluation.tables import is_shown
from unloc.files import url_of
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import FramePrediction, MomentPrediction
from unloc.report.curves import read_rows, training_curves
from unloc.report.media import duration_of, frames_at, video_source
from unloc.video.locate import index_videos

EXAMPLES, FRAMES = 6, 4  # best and worst rows each, and frames of each of their segments
MOST_CLASSES = 20  # of a video that are predicted but not annotated
MOST_POINTS = 400  # of a curve
TASKS = {"mr": "moment retrieval", "tal": "temporal action localization", "as": "action segmentation"}
TASKS |= {"hd": "highlight detection", "cls": "classification", "rejection": "moment retrieval with null queries"}


@dataclass(kw_only=True)
class Material:
    """What there is to report on: a run, an evaluation, or predictions that were not scored."""

    name: str
    folder: Path  # where the page goes by default
    task: str | None = None
    predictions: Predictions | None = None
    scored: Scored | None = None
    run: Path | None = None  # with metrics.jsonl

    @property
    def manifest(self) -> Manifest | None:
        """The annotations of the scored split."""
        return self.scored and self.scored.evaluation.selected

    def files(self, folder: Path) -> dict[str, Path]:
        """The file of each video that a folder holds. Raises MissingError as `index_videos`, InputError for a URL."""
        if url_of(folder):
            raise InputError(f"--videos {folder}: a page links files of this machine; give a folder")
        index = index_videos(folder)
        if self.manifest is not None:
            return index.locate(self.manifest.videos)[0]
        table = isinstance(self.predictions, pd.DataFrame)
        ids = self.predictions["video_id"] if table else [item.video_id for item in self.predictions or ()]
        found = {video_id: index.find(video_id) for video_id in dict.fromkeys(ids)}
        return {video_id: file for video_id, file in found.items() if file is not None}


def gather(source: Path, *, manifest: Path | None, split: str | None, task: str | None, cache: Path | None) -> Material:
    """What a run, an evaluation or a file of predictions holds. Raises as `reopen`, but for a run that trained and was
    not evaluated, and for a file without a manifest.
    """
    folder = run_folder(source)
    run = next((one for one in (folder, *folder.resolve().parents) if (one / "metrics.jsonl").is_file()), None)
    if run == folder and not split and not list(folder.glob("eval/**/metrics.json")):
        return Material(name=folder.resolve().name, folder=folder, run=run)
    if source.is_file() and manifest is None and find_report(source) is None:
        file = read_predictions(source, task, split=split)
        return Material(name=source.name, folder=source.parent, task=file.task, predictions=file.predictions)
    scored = reopen(source, manifest=manifest, split=split, task=task, cache=cache)
    name = run.name if run else source.name if source.is_file() else source.resolve().name
    kept = {"task": scored.task, "predictions": scored.predictions, "scored": scored}
    return Material(name=name, folder=(find_report(source, task, split) or source).parent, run=run, **kept)


def content_of(
    material: Material,
    page: Path,
    files: Mapping[str, Path],
    *,
    embed: bool = False,
    limit: int = 100,
    top: int = 5,
    on_progress: OnProgress = lambda done, total: None,
) -> dict:
    """The document of `page.html`, which is written to `page`.

    `files`: those of the videos that were given. At most `limit` videos have a timeline, those of the examples first,
    with the `top` predictions of each query or class.
    """
    scored, content = material.scored, {"title": material.name, "facts": [], "notes": [], "curves": [], "videos": []}
    content |= {"metrics": None, "errors": None, "examples": None, "unit": "classes", "scores": [0.0, 1.0]}
    content["footer"] = f"Written by unloc {__version__}. This page is one file and asks nothing of the network."
    if material.run:
        content["curves"] = _curves(material.run)
    if scored:
        content |= _evaluation(scored)
    elif material.predictions is None:
        note = "This run was not evaluated yet: unloc eval RUN gives metrics, errors and timelines."
        content["notes"].append(note)
    else:
        content["facts"] = [["task", f"{TASKS[material.task]} ({material.task})"]]
        content["notes"].append("No annotations: --manifest and --split add them, with metrics and errors.")
    if material.predictions is None:
        return content

    rows = rows_of(material.task, material.predictions, material.manifest, top)
    ranked = [(video_id, row) for video_id, own in rows.items() for row in own if row["iou"] is not None]
    ranked = [one for one in ranked if one[0] in files and one[1]["found"] and material.task != "cls"]
    # The best by IoU, of equal ones the best scored; the worst are those that overlap least though they score high.
    ranked.sort(key=lambda one: (-one[1]["iou"], -(one[1]["found"][0][2] or 0.0) * (1 if one[1]["iou"] else -1)))
    count = min(EXAMPLES, len(ranked) // 2)
    best, worst = ranked[:count], ranked[len(ranked) - count :][::-1]
    chosen = list(dict.fromkeys(video_id for video_id, _ in (*best, *worst)))
    chosen += [video_id for video_id in rows if video_id not in chosen][: max(0, limit - len(chosen))]
    chosen = [video_id for video_id in rows if video_id in set(chosen)]
    if len(chosen) < len(rows):
        content["notes"].append(f"Timelines of {len(chosen)} of {len(rows)} videos; --limit shows more.")
    if missing := [video_id for video_id in chosen if video_id not in files] if files else []:
        content["notes"].append(f"{len(missing)} of these videos have no file in --videos (first: {missing[0]}).")
    durations, total = (
        material.manifest.stated_durations() if material.manifest else {},
        len(chosen) + len(best + worst),
    )
    for done, video_id in enumerate(chosen):
        on_progress(done, total)
        content["videos"].append(
            _video(video_id, rows[video_id], durations.get(video_id), files.get(video_id), page, embed)
        )
    content["unit"] = "queries" if material.task in QUERY_TASKS else "classes"
    scores = [one[2] for own in rows.values() for row in own for one in row["found"] if one[2] is not None]
    if scores and (min(scores) < 0 or max(scores) > 1):
        content["scores"] = [min(scores), max(scores)]
    if best:
        cards = []
        for done, (video_id, row) in enumerate(best + worst, start=len(chosen) + 1):
            seconds = content["videos"][chosen.index(video_id)]["duration"]
            cards.append(_example(video_id, row, files[video_id], seconds) | {"index": chosen.index(video_id)})
            on_progress(done, total)
        caption = (
            "By the IoU of the best-scored prediction with the annotated segment that it overlaps most. Of the worst, "
        )
        caption += "the most confident come first."
        content["examples"] = {"caption": caption, "best": cards[:count], "worst": cards[count:]}
    return content


def _curves(run: Path) -> list[dict]:
    panels = []
    for title, lines in training_curves(read_rows(run)).items():
        shown = [
            {
                "name": name,
                "steps": thinned(np.array(steps, float)).tolist(),
                "values": thinned(np.array(values, float)).tolist(),
            }
            for name, (steps, values) in lines.items()
        ]
        panels += [{"title": title, "lines": shown}] if shown else []
    return panels


def _evaluation(scored: Scored) -> dict:
    """Facts, table of metrics with floors and intervals, and errors; what metrics.json lacks is computed."""
    evaluation, task = scored.evaluation, scored.task
    report = scored.report or evaluation.report(task, scored.predictions)
    intervals = report.get("intervals")
    if not intervals:
        scores = scored.scores()
        intervals = bootstrap_intervals(scores, scores.metrics(), seed=0)
    floors, rows = report.get("floors", {}), []
    for name, value in report["metrics"].items():
        if is_shown(name):
            low, high = intervals.get(name, (None, None))
            of_floors = [(floor, values.get(name)) for floor, values in floors.items()]
            rows.append({"name": name, "ours": value, "low": low, "high": high, "floors": of_floors})
    caption = (
        f"Percent, by protocol {report['protocol']}. Intervals: 95 % bootstrap over {report['num_videos']} videos. "
    )
    caption += "Floors are constants that see no video and read no text; on the scale they are the upright marks."
    counts = {"videos": report["num_videos"], "queries": report["num_queries"], "segments": report["num_instances"]}
    facts = {"task": f"{TASKS[task]} ({evaluation.task})", "manifest": f"{report['manifest']}, split {report['split']}"}
    facts |= {"annotated": ", ".join(f"{count} {what}" for what, count in counts.items() if count)}
    notes = [f"Bad predictions: {line}" for line in scored.problems.lines()]
    if recipe := report.get("recipe"):
        towers, tokens = recipe["towers"], recipe["tokens"]
        facts["recipe"] = f"{recipe['name']}: image tower {towers['image']}, text tower {towers['text']}"
        facts["tokens of"] = f"{tokens['tower.name'] or 'another project'} {tokens['tower.pretrained'] or ''}".strip()
        if recipe["checkpoint_selected_on"] == report["split"]:
            notes.append(f"Split {report['split']} selected the checkpoint, so these figures are too optimistic.")
    if report.get("external_labels"):
        facts["external labels"] = "used"
    metrics = {"caption": caption, "floors": list(floors), "rows": rows}
    found = {"facts": list(facts.items()), "notes": notes, "metrics": metrics}
    if task in ("cls", "rejection"):  # nothing is localized, or a query may have no segment
        return found
    return found | {"errors": _errors(report.get("analysis") or analyse(task, scored.predictions, evaluation.selected))}


def _errors(analysis: dict) -> dict:
    gains, recall = analysis["gain_without"], []
    for title, key, unit, scale in (
        ("Recall by length", "length_seconds", "s", 1),
        ("Recall by share of the video", "share_of_video", "%", 100),
    ):
        bins = []
        for row in analysis["recall"][key]:
            low, high = row["from"] * scale, math.inf if row["below"] is None else row["below"] * scale
            name = f"{low:g} {unit} or more" if math.isinf(high) else f"{low:g} to {high:g} {unit}"
            bins += [(name, row["recall"], row["segments"])] if row["segments"] else []
        recall.append((title, bins))
    caption = f"Counted are {analysis['counted']}, at IoU {analysis['iou']}. Recall: annotated segments that one of the"
    caption += " 10·n best predictions finds, n the number of segments of that query or class in the video."
    kinds = [(kind, count, gains.get(kind)) for kind, count in analysis["counts"].items()]
    return {"caption": caption, "kinds": kinds, "recall": recall}


# -- Timelines


def rows_of(task: str, predictions: Predictions, manifest: Manifest | None, top: int) -> dict[str, list[dict]]:
    """For every video the rows of its timeline: a query or class with its annotated segments and its `top` predictions.

    Videos and queries are in the order of the manifest, without one of the predictions; classes with annotations first.
    """
    if task in QUERY_TASKS:
        rows = _query_rows(task, predictions, manifest, top)
    elif task == "as":
        rows = [row for item in predictions for row in _frame_rows(item, manifest, top)]
    else:
        columns = ["start_seconds", "end_seconds", "score"]
        groups = predictions.groupby(["video_id", "label"], sort=False)[columns]
        rows = [(video_id, _row(label, table.to_numpy(np.float64), top)) for (video_id, label), table in groups]
    found: dict[str, list[dict]] = {video_id: [] for video_id in manifest.videos["video_id"]} if manifest else {}
    for video_id, row in rows:
        found.setdefault(video_id, []).append(row)
    if task not in QUERY_TASKS:
        if manifest is not None:
            for (video_id, label), table in manifest.instances.groupby(["video_id", "label"], sort=False):
                own = found.setdefault(video_id, [])
                row = next((row for row in own if row["text"] == label), None)
                if row is None:
                    own.append(row := _row(label, np.zeros((0, 3)), top))
                row["truth"] = table[["start_seconds", "end_seconds"]].to_numpy(np.float64)
        for own in found.values():
            own.sort(
                key=lambda row: (
                    not len(row["truth"]),
                    -max((one[2] or 0.0 for one in row["found"]), default=-math.inf),
                )
            )
            annotated = sum(len(row["truth"]) > 0 for row in own)
            del own[annotated + MOST_CLASSES :]
    for row in chain.from_iterable(found.values()):
        truth = np.array([one for one in np.asarray(row["truth"]).reshape(-1, 2).tolist() if one[1] > one[0]]).reshape(
            -1, 2
        )
        first = np.array([one[:2] for one in row["found"][:1]]).reshape(-1, 2)
        row["iou"] = float(overlap_over_union(first, truth).max(initial=0.0)) if len(truth) else None
        row["truth"] = np.round(np.asarray(row["truth"], dtype=np.float64), 3).tolist()
    return found


def _row(text: str, windows: np.ndarray, top: int, **more: object) -> dict:
    """A row with the best `top` of windows (N, 3), whose scores may be NaN: unknown."""
    windows = windows[np.isfinite(windows[:, :2]).all(axis=1)]
    best = windows[np.argsort(-windows[:, 2], kind="stable")][:top]
    found = [
        [round(start, 3), round(end, 3), None if math.isnan(score) else score] for start, end, score in best.tolist()
    ]
    row = {"text": text, "truth": [], "found": found, "more": len(windows) - len(best), "curves": [], "existence": None}
    return row | {"absent": False} | more


def _query_rows(
    task: str, predictions: Sequence[MomentPrediction], manifest: Manifest | None, top: int
) -> list[tuple[str, dict]]:
    if manifest is None:
        queries = [(item.video_id, item.query or f"qid {item.qid}", [], item) for item in predictions]
    else:
        answers = ALIGN[task](predictions, manifest)
        answers = [(found[-1] if found else None) for found in answers] if task == "rejection" else answers
        table = manifest.queries[["video_id", "text", "segments"]].itertuples(index=False, name=None)
        queries = [(*row, item) for row, item in zip(table, answers, strict=True)]
    rows = []
    for video_id, text, segments, item in queries:
        windows = np.zeros((0, 3)) if item is None else item.windows
        curves = []
        if item is not None and item.saliency is not None:
            times = np.arange(len(item.saliency)) * CLIP_SECONDS
            curves.append(curve("saliency", times, item.saliency, CLIP_SECONDS))
        stated = {"existence": None if item is None else item.existence, "curves": curves, "truth": segments}
        rows.append((video_id, _row(text, windows, top, **stated, absent=task == "rejection" and not segments)))
    return rows


def _frame_rows(item: FramePrediction, manifest: Manifest | None, top: int) -> list[tuple[str, dict]]:
    """A row a class that is predicted or annotated, the longest segments first, with the scores of its frames."""
    duration = manifest.stated_durations().get(item.video_id, 0.0) if manifest else 0.0
    segments = pd.DataFrame(item.segments(duration), columns=["label", "start", "end"])
    segments = segments.iloc[(segments["start"] - segments["end"]).argsort(kind="stable")]
    windows = {
        label: own[["start", "end"]].to_numpy(np.float64) for label, own in segments.groupby("label", sort=False)
    }
    if manifest:
        annotated = manifest.instances["label"][manifest.instances["video_id"] == item.video_id].unique()
        windows |= {label: np.zeros((0, 2)) for label in annotated if label not in windows}
    scores = None if item.scores is None or manifest is None else np.asarray(item.scores)
    rows, times = [], item.edges(duration)[:-1]
    for label, own in windows.items():
        curves = []
        if scores is not None and label in manifest.classes and len(scores) == len(times):
            curves.append(curve("frame score", times, scores[:, manifest.classes.index(label)]))
        rows.append(
            (
                item.video_id,
                _row(label, np.column_stack([own, np.full(len(own), np.nan)]), max(top, len(own)), curves=curves),
            )
        )
    return rows


def curve(name: str, times: np.ndarray, values: np.ndarray, step: float = 0.0) -> dict:
    """A curve of a row: values (n,) at times in seconds, or from each time on for `step` seconds."""
    values = np.asarray(values, dtype=np.float64)
    if not step:
        times, values = thinned(times), thinned(values)
    rounded = np.vectorize(lambda value: float(f"{value:.4g}"), otypes=[float])
    return {"name": name, "times": np.round(times, 3).tolist(), "values": rounded(values).tolist(), "step": step}


def thinned(values: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` means of neighbouring values; NaN only where all are."""
    size = math.ceil(len(values) / MOST_POINTS) or 1
    parts = np.array_split(values, range(size, len(values), size))
    return np.array(
        [part[~np.isnan(part)].mean() if not np.isnan(part).all() else np.nan for part in parts if len(part)]
    )


def _video(video_id: str, rows: list[dict], duration: float | None, file: Path | None, page: Path, embed: bool) -> dict:
    if (duration is None or math.isnan(duration)) and file is not None:
        duration = duration_of(file)
    if duration is None or math.isnan(duration) or duration <= 0:
        duration = max((one[1] for row in rows for one in (*row["truth"], *row["found"])), default=1.0)
    source = None if file is None else video_source(file, page, embed=embed)
    return {"id": video_id, "file": file and file.name, "source": source, "duration": duration, "rows": rows}


def _example(video_id: str, row: dict, file: Path, duration: float) -> dict:
    """A card with frames of the best-scored prediction and of the annotated segment that it overlaps most."""
    found, truth = row["found"][0][:2], np.array(row["truth"])
    nearest = overlap_over_union(np.array([found]), truth) if row["iou"] else -abs(truth.mean(axis=1) - np.mean(found))
    truth = row["truth"][int(nearest.argmax())]
    times = [np.linspace(*np.clip(one, 0.0, duration), 2 * FRAMES + 1)[1::2] for one in (found, truth)]
    images = frames_at(file, np.concatenate(times))
    shown = [
        [(float(t), image) for t, image in zip(np.concatenate(times), images, strict=True)][part]
        for part in (slice(FRAMES), slice(FRAMES, None))
    ]
    frames = {
        key: [one for one in part if one[1]] for key, part in zip(("found_frames", "truth_frames"), shown, strict=True)
    }
    named = {
        "video": video_id,
        "text": row["text"],
        "iou": row["iou"],
        "score": row["found"][0][2],
        "duration": duration,
    }
    return named | {"found": found, "truth": truth} | frames
