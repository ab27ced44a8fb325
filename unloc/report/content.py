"""What a page says: of a run its curves, metrics and errors, of predictions a timeline for each video."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unloc import __version__
from unloc.annotations.schema import Manifest
from unloc.callbacks import OnProgress
from unloc.errors import InputError, MissingError
from unloc.evaluation.analysis import analyse
from unloc.evaluation.detection import overlap_over_union
from unloc.evaluation.evaluator import QUERY_TASKS, bootstrap_intervals
from unloc.evaluation.reopening import Scored, find_report, reopen, run_folder
from unloc.evaluation.screening import Predictions
from unloc.evaluation.tables import is_shown
from unloc.files import url_of
from unloc.predictions.reading import read_predictions
from unloc.report.media import duration_of, frames_at, video_source
from unloc.report.timelines import Key, rows_of, thinned
from unloc.tasks import TASKS
from unloc.training.curves import read_rows, training_curves
from unloc.video.locate import index_videos

if TYPE_CHECKING:
    from unloc.inference.video_prediction import VideoPrediction

EXAMPLES, FRAMES = 6, 4  # best and worst rows each, and frames of each of their segments
TITLES = {name: task.title for name, task in TASKS.items()} | {"rejection": "moment retrieval with null queries"}
RECALL = (("Recall by length", "length_seconds", "s", 1), ("Recall by share of the video", "share_of_video", "%", 100))


@dataclass(kw_only=True)
class Material:
    """What there is to report on: a run, an evaluation, or predictions that were not scored."""

    name: str
    folder: Path = Path()  # where the page goes by default
    task: str | None = None
    predictions: Predictions | None = None
    scored: Scored | None = None
    run: Path | None = None  # with metrics.jsonl
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    durations: dict[str, float] = field(default_factory=dict)  # of videos, where known
    relevance: dict[Key, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # times and values

    @property
    def manifest(self) -> Manifest | None:
        """The annotations of the scored split."""
        return self.scored and self.scored.evaluation.selected

    def files(self, folder: Path) -> dict[str, Path]:
        """The file of each video that a folder holds. Raises MissingError where it holds none, InputError for a URL."""
        if url_of(folder):
            raise InputError(f"--videos {folder}: a page links files of this machine; give a folder")
        index = index_videos(folder)
        if self.manifest is not None:
            videos = self.manifest.videos
        else:
            table = isinstance(self.predictions, pd.DataFrame)
            ids = self.predictions["video_id"] if table else [item.video_id for item in self.predictions or ()]
            videos = pd.DataFrame({"video_id": ids, "file": None})
        found, missing = index.locate(videos)
        if missing and not found:
            raise MissingError(f"--videos {folder}: holds none of the {len(missing)} videos (first: {missing[0]})")
        return found


def gather(source: Path, *, manifest: Path | None, split: str | None, task: str | None, cache: Path | None) -> Material:
    """What a run, an evaluation or a file of predictions holds. Raises as `reopen`, but for a run that trained and was
    not evaluated, and for a file without a manifest.
    """
    folder = run_folder(source)
    run = next((one for one in (folder, *folder.resolve().parents) if (one / "metrics.jsonl").is_file()), None)
    if run == folder and not split and not list(folder.glob("eval/**/metrics.json")):
        note = "This run was not evaluated yet: unloc eval RUN gives metrics, errors and timelines."
        return Material(name=folder.resolve().name, folder=folder, run=run, notes=[note])
    if source.is_file() and manifest is None and find_report(source) is None:
        file = read_predictions(source, task, split=split)
        note = "No annotations: --manifest and --split add them, with metrics and errors."
        found = {"task": file.task, "predictions": file.predictions, "notes": [note]}
        return Material(name=source.name, folder=source.parent, **found)
    scored = reopen(source, manifest=manifest, split=split, task=task, cache=cache)
    found = {"task": scored.task, "predictions": scored.predictions, "scored": scored, "run": run}
    found["durations"] = scored.evaluation.selected.stated_durations()
    name = run.name if run else source.name if source.is_file() else source.resolve().name
    return Material(name=name, folder=(find_report(source, task, split) or source).parent, **found)


def material_of(found: Sequence["VideoPrediction"]) -> Material:
    """What `unloc predict` found in videos."""
    from unloc.inference.answers import joined_records  # here: it imports torch

    names = [Path(one.video).name for one in found]
    curves = {(one.video_id, text): curve for one in found for text, curve in one.curves.items()}
    return Material(
        name=", ".join(names[:3]) + (" and more" if len(names) > 3 else ""),
        task=found[0].task,
        predictions=joined_records(found),
        facts={"how": "; ".join(dict.fromkeys(one.how for one in found))},
        notes=list(dict.fromkeys(one.note for one in found if one.note)),
        durations={one.video_id: one.duration_seconds for one in found},
        relevance={key: (curve.times_seconds, curve.relevance) for key, curve in curves.items()},
    )


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
    task, facts, notes, videos = material.task, dict(material.facts), list(material.notes), []
    content = {"title": material.name, "videos": videos, "notes": notes, "curves": _curves(material.run)}
    content |= dict.fromkeys(("metrics", "errors", "examples")) | {"scores": [0.0, 1.0]}
    content["units"] = ["query", "queries"] if task in QUERY_TASKS else ["class", "classes"]
    content["footer"] = f"Written by unloc {__version__}. This page is one file and asks nothing of the network."
    if task is not None:
        facts = {"task": f"{TITLES[task]} ({task})"} | facts
    if material.scored:
        content |= _evaluation(material.scored, facts, notes)
    content["facts"] = list(facts.items())
    if material.predictions is None:
        return content

    rows = rows_of(task, material.predictions, material.manifest, top=top, relevance=material.relevance)
    best, worst = _best_and_worst({key: own for key, own in rows.items() if key in files and task != "cls"})
    first = dict.fromkeys(video_id for video_id, _ in (*best, *worst))
    others = [video_id for video_id in rows if video_id not in first]
    shown = {*first, *others[: max(0, limit - len(first))]}
    index = {video_id: place for place, video_id in enumerate(one for one in rows if one in shown)}
    if len(index) < len(rows):
        notes.append(f"Timelines of {len(index)} of {len(rows)} videos; --limit shows more.")
    if files and (missing := [video_id for video_id in index if video_id not in files]):
        notes.append(f"{len(missing)} of these videos have no file in --videos (first: {missing[0]}).")
    total = len(index) + len(best + worst)
    for video_id, place in index.items():
        on_progress(place, total)
        duration, file = material.durations.get(video_id, math.nan), files.get(video_id)
        duration, last = duration if duration > 0 else file and duration_of(file), 0.0
        if not duration:
            last = max((one[1] for row in rows[video_id] for one in (*row["truth"], *row["found"])), default=0.0)
        source = None if file is None else video_source(file, page, embed=embed)
        named = {"id": video_id, "file": file and file.name, "source": source, "measured": bool(duration)}
        videos.append(named | {"duration": duration or last or 1.0, "rows": rows[video_id]})
    scores = [one[2] for own in rows.values() for row in own for one in row["found"] if one[2] is not None]
    if scores and (min(scores) < 0 or max(scores) > 1):
        content["scores"] = [min(scores), max(scores)]
    if best:
        cards = []
        for video_id, row in best + worst:
            on_progress(len(index) + len(cards), total)
            cards.append(_example(videos[index[video_id]], row, files[video_id]) | {"index": index[video_id]})
        ranked = "longest" if task == "as" else "best-scored"
        caption = f"By the IoU of the {ranked} prediction with the annotated segment that it overlaps most."
        content["examples"] = {"caption": caption, "best": cards[: len(best)], "worst": cards[len(best) :]}
    on_progress(total, total)
    return content


def _curves(run: Path | None) -> list[dict]:
    panels = []
    for title, lines in training_curves(read_rows(run)).items() if run else ():
        shown = [{"name": name, "steps": thinned(x), "values": thinned(y)} for name, (x, y) in lines.items()]
        panels += [{"title": title, "lines": shown}] if shown else []
    return panels


def _evaluation(scored: Scored, facts: dict[str, str], notes: list[str]) -> dict:
    """Metrics with floors and intervals, and errors; what metrics.json lacks is computed. Adds facts and notes."""
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
    caption = f"Percent, by protocol {report['protocol']}. Floors are constants that see no video and read no text; on "
    caption += f"the scale they are the upright marks. Intervals: 95 % bootstrap over {report['num_videos']} videos."
    counts = {"videos": report["num_videos"], "queries": report["num_queries"], "segments": report["num_instances"]}
    facts["manifest"] = f"{report['manifest']}, split {report['split']}"
    facts["annotated"] = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    notes += [f"Bad predictions: {line}" for line in scored.problems.lines()]
    if recipe := report.get("recipe"):
        towers, tokens = recipe["towers"], recipe["tokens"]
        facts["recipe"] = f"{recipe['name']}: image tower {towers['image']}, text tower {towers['text']}"
        facts["tokens of"] = f"{tokens['tower.name'] or 'another project'} {tokens['tower.pretrained'] or ''}".strip()
        if recipe["checkpoint_selected_on"] == report["split"]:
            notes.append(f"Split {report['split']} selected the checkpoint, so these figures are too optimistic.")
    if report.get("external_labels"):
        facts["external labels"] = "used"
    found = {"metrics": {"caption": caption, "floors": list(floors), "rows": rows}}
    if task in ("cls", "rejection"):  # nothing is localized, or a query may have no segment
        return found
    return found | {"errors": _errors(report.get("analysis") or analyse(task, scored.predictions, evaluation.selected))}


def _errors(analysis: dict) -> dict:
    recall = []
    for title, key, unit, scale in RECALL:
        bins = []
        for row in analysis["recall"][key]:
            low, high = row["from"] * scale, math.inf if row["below"] is None else row["below"] * scale
            name = f"{low:g} {unit} or more" if math.isinf(high) else f"{low:g} to {high:g} {unit}"
            bins += [(name, row["recall"], row["segments"])] if row["segments"] else []
        recall.append((title, bins))
    caption = f"Counted are {analysis['counted']}, at IoU {analysis['iou']}. Recall: annotated segments that one of the"
    caption += " 10·n best predictions finds, n the number of segments of that query or class in the video."
    kinds = [(kind, count, analysis["gain_without"].get(kind)) for kind, count in analysis["counts"].items()]
    return {"caption": caption, "kinds": kinds, "recall": recall}


def _best_and_worst(rows: dict[str, list[dict]]) -> tuple[list[tuple[str, dict]], list[tuple[str, dict]]]:
    """(video id, row) of the rows with the highest IoU, the best scored first, and of those with the lowest, in which
    confident mistakes come first.
    """
    ranked = [(video_id, row) for video_id, own in rows.items() for row in own if row["found"] and row["truth"]]

    def score(one: tuple[str, dict]) -> float:
        return one[1]["found"][0][2] or 0.0

    count = min(EXAMPLES, len(ranked) // 2)
    best = sorted(ranked, key=lambda one: (-one[1]["iou"], -score(one)))[:count]
    others = [one for one in ranked if not any(one is chosen for chosen in best)]
    return best, sorted(others, key=lambda one: (one[1]["iou"], -score(one)))[:count]


def _example(video: dict, row: dict, file: Path) -> dict:
    """A card with frames of the first prediction and of the annotated segment that it overlaps most, or is nearest."""
    found, truth = row["found"][0][:2], np.array(row["truth"])
    nearest = overlap_over_union(np.array([found]), truth) if row["iou"] else -abs(truth.mean(axis=1) - np.mean(found))
    segments = {"found": found, "truth": row["truth"][int(nearest.argmax())]}
    times = [np.linspace(*np.clip(one, 0.0, video["duration"]), 2 * FRAMES + 1)[1::2] for one in segments.values()]
    frames = list(zip(np.concatenate(times).tolist(), frames_at(file, np.concatenate(times)), strict=True))
    card = {"video": video["id"], "text": row["text"], "iou": row["iou"], "score": row["found"][0][2]} | segments
    halves = {"found_frames": frames[:FRAMES], "truth_frames": frames[FRAMES:]}
    shown = {key: [(time, image) for time, image in half if image] for key, half in halves.items()}
    return card | {"duration": video["duration"]} | shown
