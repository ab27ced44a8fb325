"""Evaluations that run a model or the baseline on a cache; scoring itself is in `unloc.evaluation`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache
from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.evaluation.evaluator import Predictions, require_seconds
from unloc.evaluation.job import Evaluation
from unloc.evaluation.reopening import run_folder
from unloc.evaluation.zero_shot import names_in_vocabulary
from unloc.examples.sources import CachedTokens
from unloc.examples.steps import at_distinct_times, nearest_index
from unloc.files import file_sha256
from unloc.inference.device import described, resolve_device
from unloc.inference.load import load_model, local_run, model_for_classes, require_same_cache, require_task
from unloc.inference.predict import predict_split
from unloc.inference.run_tower import fingerprint_of_run
from unloc.inference.similarity import cosine_similarity, not_embeddings, segments_above
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.predictions.writing import SUBMITTED_SPLITS
from unloc.tasks import task_named

TOKEN_KEYS = ("tower.name", "tower.pretrained", "tower.weights_sha256", "sampling.num_frames", "sampling.fps")


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
    folder = local_run(run)
    if folder != Path(run) and evaluation.out is None:
        raise InputError(f"unloc eval: {run} is of the Hugging Face Hub; give a folder for its metrics with --out")
    run, loaded = folder, load_model(folder, where, wanted)
    recipe, task = loaded.info.recipe, loaded.info.recipe.task
    several = loaded.info.tasks
    if several and len(several.keys() & wanted) != 1:
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
    tokens = {key: fingerprint.get(key) for key in TOKEN_KEYS}
    stated["recipe"] = {"name": recipe.name, "towers": asdict(recipe.towers), "tokens": tokens}
    stated["recipe"] |= {"checkpoint_step": loaded.info.step, "checkpoint_selected_on": recipe.data.val_split or None}
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


def baseline_predictions(task: str, manifest: Manifest, cache: Cache) -> Predictions:
    """Predictions for the queries (with saliency) or classes of all cached videos, of the kind the task has. A frame's
    label is the most similar class, background below the video's median. Raises InputError for a cache whose frames and
    texts are not CLIP's embeddings.
    """
    if others := not_embeddings(cache.fingerprint):
        problem = f"has other tokens than CLIP's embeddings ({others}), which the baseline compares"
        raise InputError(f"{cache.path}: {problem}; extract a cache with the projections")
    predictions, rows = [], []
    if task in ("mr", "hd"):
        queries = manifest.queries[manifest.queries["video_id"].map(cache.__contains__).astype(bool)]
        unique = queries["text"].unique().tolist()
        eos = {text: tokens[-1:] for text, tokens in zip(unique, cache.texts(unique), strict=True)}
        for qid, video_id, text in queries[["qid", "video_id", "text"]].itertuples(index=False):
            cached = cache[video_id]
            similarity = cosine_similarity(cached.frames[0], eos[text])[:, 0]
            duration = cached.meta["duration_seconds"]
            middles = (np.arange(max(1, int(duration / CLIP_SECONDS))) + 0.5) * CLIP_SECONDS
            saliency = similarity[nearest_index(cached.times_seconds, middles)]
            named = {"qid": qid, "video_id": video_id, "query": text}
            windows = segments_above(similarity, cached)
            predictions.append(MomentPrediction(**named, windows=windows, saliency=saliency))
        return predictions
    eos = np.stack([tokens[-1] for tokens in cache.texts(list(manifest.classes))])
    for video_id in filter(cache.__contains__, manifest.videos["video_id"].unique()):
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
