"""Evaluations that run a model or the baseline on a cache; scoring itself is in `unloc.evaluation`."""

from dataclasses import asdict, replace
from pathlib import Path

from unloc.annotations.subsets import names_in_vocabulary
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache
from unloc.errors import InputError
from unloc.evaluation.evaluator import require_seconds
from unloc.evaluation.job import Evaluation
from unloc.examples.sources import CachedTokens
from unloc.files import file_sha256
from unloc.inference.baseline import baseline_detections, baseline_frames, baseline_moments, require_embeddings
from unloc.inference.device import described, resolve_device
from unloc.inference.load import LoadedModel, load_model, require_same_cache, require_task
from unloc.inference.predict import OnProgress, predict_split
from unloc.predictions.writing import SUBMITTED_SPLITS
from unloc.tasks import task_named

TOKEN_KEYS = ("tower.name", "tower.pretrained", "tower.weights_sha256", "sampling.num_frames", "sampling.fps")


def run_folder(run: Path) -> Path:
    """The run that a run folder, one of its checkpoints or a file in a checkpoint belongs to."""
    folder = run.parent if run.is_file() else run
    is_run = (folder / "recipe.yaml").is_file() or folder.parent.name != "checkpoints"
    return folder if is_run else folder.parent.parent


def evaluate_baseline(evaluation: Evaluation) -> dict | None:
    """The report of the similarity between frames and texts, without training; None if annotations are hidden."""
    manifest, split = evaluation.manifest, evaluation.split
    task = task_named(evaluation.task or manifest.tasks[0]).name
    is_scored, paths = evaluation.has_annotations(task), evaluation.prediction_paths(task, with_report=True)
    cache = open_cache(evaluation.cache)
    require_embeddings(cache)
    evaluation.warnings += [cache.note] if cache.note else []
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    predictions = predict(manifest.select(split), cache)
    evaluation.write_predictions(paths, task, predictions, split, external_labels=evaluation.external_labels)
    report = evaluation.report(task, predictions) | _written(paths) | _note(cache) if is_scored else None
    return evaluation.finish(task, report, predictions)


def evaluate_run(
    evaluation: Evaluation, run: Path, device: str = "auto", on_progress: OnProgress = lambda done, total: None
) -> dict | None:
    """The report of a run's predictions; None if the annotations are hidden and the predictions are only exported.

    Raises InputError if the run is for another task; FingerprintError if the cache is from another tower.
    """
    where = resolve_device(device)
    loaded, manifest, split = load_model(run, where), evaluation.manifest, evaluation.split
    recipe, fingerprint = loaded.info.recipe, loaded.info.fingerprint
    task = recipe.task
    if evaluation.task not in (None, task):
        raise InputError(f"unloc eval: --task {evaluation.task}, but {run} was trained for {task}; leave --task out")
    require_task(manifest, task)
    cache = open_cache(evaluation.cache)
    is_scored, paths = evaluation.has_annotations(task), evaluation.prediction_paths(task, with_report=True)
    selected = manifest.select(split)
    require_seconds(task, selected, split, cache.durations_of(selected.videos["video_id"]))
    require_same_cache(fingerprint, cache.fingerprint, evaluation.cache)
    evaluation.warnings += [cache.note] if cache.note else []
    model = model_for_classes(loaded, manifest.classes)
    predictions = predict_split(model, selected, CachedTokens(cache), on_progress)
    external = evaluation.external_labels
    evaluation.write_predictions(paths, task, predictions, split, external_labels=external)
    if evaluation.export is not None and evaluation.export.suffix.lower() == ".zip":
        for other in SUBMITTED_SPLITS:  # the server of QVHighlights takes both in one zip
            part = manifest.select(other) if other in manifest.splits and other != split else None
            if part is not None and all(video_id in cache for video_id in part.videos["video_id"]):
                more = predict_split(model, part, CachedTokens(cache), on_progress)
                evaluation.write_predictions([evaluation.export], task, more, other, external_labels=external)
    if not is_scored:
        return evaluation.finish(task, None, predictions)
    train_split = evaluation.train_split or recipe.data.train_split
    report = evaluation.report(task, predictions, train_split=train_split if train_split in manifest.splits else None)
    report |= _written(paths) | described(where, recipe.train.precision) | _note(cache)
    report["recipe"] = {
        "name": recipe.name,
        "towers": asdict(recipe.towers),
        "tokens": {key: fingerprint.get(key) for key in TOKEN_KEYS},
        "checkpoint_selected_on": recipe.data.val_split or None,
    }
    if model is not loaded:
        report["classes_seen_in_training"] = names_in_vocabulary(manifest.classes, loaded.info.classes)["same"]
    return evaluation.finish(task, report, predictions)


def _written(paths: list[Path]) -> dict[str, str]:
    return {"predictions_sha256": file_sha256(paths[0])} if paths else {}


def _note(cache: Cache) -> dict[str, str]:
    return {"note": cache.note} if cache.note else {}


def model_for_classes(loaded: LoadedModel, classes: tuple[str, ...]) -> LoadedModel:
    """The model with the classes of the manifest, where they are not those it was trained on (zero-shot).

    Raises InputError for a model whose head only knows the classes it was trained on.
    """
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"--manifest has {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))
