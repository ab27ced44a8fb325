"""Evaluations that run a model or the baseline on a cache; scoring itself is in `unloc.evaluation`.

The baseline's predictions are runs of frames whose cosine with the text's EOS token, standardised within the video, is
above a threshold, scored by its mean.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache, CachedVideo
from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.evaluation.evaluator import Predictions, require_seconds
from unloc.evaluation.job import Evaluation
from unloc.evaluation.reopening import run_folder
from unloc.evaluation.zero_shot import names_in_vocabulary
from unloc.examples.sources import CachedTokens
from unloc.examples.steps import at_distinct_times, nearest_index, token_spans
from unloc.files import file_sha256
from unloc.inference.device import described, resolve_device
from unloc.inference.load import LoadedModel, load_model, require_same_cache, require_task
from unloc.inference.predict import predict_split
from unloc.inference.run_tower import fingerprint_of_run
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.predictions.writing import SUBMITTED_SPLITS
from unloc.tasks import task_named

TOKEN_KEYS = ("tower.name", "tower.pretrained", "tower.weights_sha256", "sampling.num_frames", "sampling.fps")
THRESHOLDS = (0.0, 0.5, 1.0, 1.5)  # of the baseline: standard deviations above the video's mean


def evaluate_baseline(evaluation: Evaluation) -> dict | None:
    """The report of the similarity between frames and texts, without training; None if annotations are hidden."""
    task, cache = task_named(evaluation.task or evaluation.manifest.tasks[0]).name, open_cache(evaluation.cache)
    return _evaluate(evaluation, task, cache, lambda part: baseline_predictions(task, part, cache), {})


def evaluate_run(
    evaluation: Evaluation, run: Path, device: str = "auto", on_progress: OnProgress = lambda done, total: None
) -> dict | None:
    """The report of a run's predictions; None if the annotations are hidden and the predictions are only exported.

    Files go to RUN/eval/SPLIT, of a run of several tasks to RUN/eval/TASK/SPLIT, or where `evaluation.out` says. Raises
    InputError if the run is for another task; FingerprintError if the cache is from another tower.
    """
    where, manifest, selected = resolve_device(device), evaluation.manifest, evaluation.selected
    wanted = [evaluation.task] if evaluation.task else manifest.tasks
    loaded = load_model(run, where, wanted)
    recipe, task = loaded.info.recipe, loaded.info.recipe.task
    several = list(loaded.info.tasks)
    if several and len([name for name in several if name in wanted]) != 1:
        problem = f"{run} was trained for {', '.join(several)}, and asked for {', '.join(wanted)}"
        raise InputError(f"unloc eval: {problem}; give one of its tasks with --task, and a manifest of it")
    if evaluation.task not in (None, task):
        raise InputError(f"unloc eval: --task {evaluation.task}, but {run} was trained for {task}; leave --task out")
    require_task(manifest, task)
    if evaluation.out is None:
        evaluation.write_to(run_folder(run).joinpath("eval", *[task] * bool(several), evaluation.split))
    cache = open_cache(evaluation.cache)
    require_seconds(task, selected, evaluation.split, cache.durations_of(selected.videos["video_id"]))
    fingerprint = fingerprint_of_run(run, loaded.info, cache.fingerprint)
    require_same_cache(fingerprint, cache.fingerprint, evaluation.cache)
    model, stated = model_for_classes(loaded, manifest.classes), described(where, recipe.train.precision)
    stated["recipe"] = {
        "name": recipe.name,
        "towers": asdict(recipe.towers),
        "tokens": {key: fingerprint.get(key) for key in TOKEN_KEYS},
        "checkpoint_selected_on": recipe.data.val_split or None,
    }
    if model is not loaded:
        stated["classes_seen_in_training"] = names_in_vocabulary(manifest.classes, loaded.info.classes)["same"]
    if evaluation.train_split is None and recipe.data.train_split in manifest.splits:
        evaluation.floor_split = recipe.data.train_split
    source = CachedTokens(cache)
    return _evaluate(evaluation, task, cache, lambda part: predict_split(model, part, source, on_progress), stated)


def _evaluate(
    evaluation: Evaluation, task: str, cache: Cache, predict: Callable[[Manifest], Predictions], stated: dict
) -> dict | None:
    """Predict the split, write the predictions, and score them unless its annotations are hidden."""
    manifest, split, note = evaluation.manifest, evaluation.split, {"note": cache.note} if cache.note else {}
    task = evaluation.scored_task(task)
    paths = evaluation.prepare(task, with_report=True)
    predictions = predict(evaluation.selected)
    evaluation.warnings += note.values()
    evaluation.write_predictions(paths, task, predictions, split)
    if evaluation.export is not None and evaluation.export.suffix.lower() == ".zip":
        for other in SUBMITTED_SPLITS:  # the server of QVHighlights takes both in one zip
            part = manifest.select(other) if other in manifest.splits and other != split else None
            if part is not None and all(video_id in cache for video_id in part.videos["video_id"]):
                evaluation.write_predictions([evaluation.export], task, predict(part), other)
    written = {"predictions_sha256": file_sha256(paths[0])} if paths else {}
    report = evaluation.report(task, predictions)
    return evaluation.finish(task, report and report | stated | written | note, predictions)


def model_for_classes(loaded: LoadedModel, classes: tuple[str, ...]) -> LoadedModel:
    """The model with other classes of the manifest (zero-shot). Raises InputError where its head knows only its own."""
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"--manifest has {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))


def cosine_similarity(frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(T, C) cosine of frames (T, D) and texts (C, D)."""
    frames, texts = frames.astype(np.float32), texts.astype(np.float32)
    frames = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-8)
    return frames @ (texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-8)).T


def segments_above(similarity: np.ndarray, cached: CachedVideo) -> np.ndarray:
    """(N, 3) start, end, score of all runs of frames whose (T,) similarity is above a threshold, best first."""
    spans = token_spans(cached.times_seconds, cached.meta["duration_seconds"])
    standard = (similarity - similarity.mean()) / max(float(similarity.std()), 1e-8)
    found: dict[tuple[float, float], float] = {}
    for threshold in THRESHOLDS:
        edges = np.diff(np.concatenate([[0], (standard > threshold).astype(int), [0]]))
        for first, after in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            segment = (float(spans[first, 0]), float(spans[after - 1, 1]))
            found[segment] = max(found.get(segment, -1.0), float(similarity[first:after].mean()))
    rows = [(start, end, score) for (start, end), score in found.items()]
    return np.asarray(sorted(rows, key=lambda row: -row[2]), dtype=np.float64).reshape(-1, 3)


def baseline_predictions(task: str, manifest: Manifest, cache: Cache) -> Predictions:
    """Predictions for the queries or classes of all cached videos, of the kind the task has.

    Moments have saliency per 2 s clip. A frame's label is the most similar class, background below the video's median.
    Raises InputError for a cache whose frames and texts are not CLIP's embeddings.
    """
    wanted = {"tower.projected": True, "tower.texts_projected": True, "tower.num_layers": 1}
    stated = {key: cache.fingerprint.get(key, value) for key, value in wanted.items()}
    if others := [f"{key} {value}" for key, value in stated.items() if value != wanted[key]]:
        problem = f"has other tokens than CLIP's embeddings ({', '.join(others)}), which the baseline compares"
        raise InputError(f"{cache.path}: {problem}; extract a cache with the projections")
    predictions, rows = [], []
    if task in ("mr", "hd"):
        queries = [row for row in manifest.queries.to_dict("records") if row["video_id"] in cache]
        unique = list(dict.fromkeys(row["text"] for row in queries))
        eos = {text: tokens[-1:] for text, tokens in zip(unique, cache.texts(unique), strict=True)}
        for row in queries:
            cached = cache[row["video_id"]]
            similarity = cosine_similarity(cached.frames[0], eos[row["text"]])[:, 0]
            num_clips = max(1, int(cached.meta["duration_seconds"] / CLIP_SECONDS))
            middles = (np.arange(num_clips) + 0.5) * CLIP_SECONDS
            saliency = similarity[nearest_index(cached.times_seconds, middles)]
            named = {"qid": row["qid"], "video_id": row["video_id"], "query": row["text"]}
            windows = segments_above(similarity, cached)
            predictions.append(MomentPrediction(**named, windows=windows, saliency=saliency))
        return predictions
    eos = np.stack([tokens[-1] for tokens in cache.texts(list(manifest.classes))])
    for video_id in dict.fromkeys(manifest.videos["video_id"]):
        if video_id not in cache:
            continue
        cached = cache[video_id]
        similarity = cosine_similarity(cached.frames[0], eos)
        if task == "tal":
            for name, column in zip(manifest.classes, similarity.T, strict=True):
                rows += [(video_id, name, *segment) for segment in segments_above(column, cached)]
        elif task == "cls":
            whole = [(0.0, cached.meta["duration_seconds"], score) for score in similarity.mean(axis=0)]
            rows += [(video_id, name, *segment) for name, segment in zip(manifest.classes, whole, strict=True)]
        else:
            times, scores = at_distinct_times(cached.times_seconds, similarity)
            best, names = scores.max(axis=1), [manifest.classes[index] for index in scores.argmax(axis=1)]
            labels = [name if score > np.median(best) else None for name, score in zip(names, best, strict=True)]
            predictions.append(FramePrediction(video_id=video_id, times_seconds=times, labels=labels, scores=scores))
    return detections_table(rows) if task in ("tal", "cls") else predictions
