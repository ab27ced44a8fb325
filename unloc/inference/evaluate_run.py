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
    is_scored, paths = evaluation.prepare(task, with_report=True)
    cache = open_cache(evaluation.cache)
    require_embeddings(cache)
    evaluation.warnings += [cache.note] if cache.note else []
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    predictions = predict(evaluation.selected, cache)
    evaluation.write_predictions(paths, task, predictions, split)
    report = evaluation.report(task, predictions) | _stated(paths, cache) if is_scored else None
    return evaluation.finish(task, report, predictions)


def evaluate_run(
    evaluation: Evaluation, run: Path, device: str = "auto", on_progress: OnProgress = lambda done, total: None
) -> dict | None:
    """The report of a run's predictions; None if the annotations are hidden and the predictions are only exported.

    Raises InputError if the run is for another task; FingerprintError if the cache is from another tower.
    """
    where, manifest, split = resolve_device(device), evaluation.manifest, evaluation.split
    loaded = load_model(run, where)
    recipe, fingerprint, task = loaded.info.recipe, loaded.info.fingerprint, loaded.info.recipe.task
    if evaluation.task not in (None, task):
        raise InputError(f"unloc eval: --task {evaluation.task}, but {run} was trained for {task}; leave --task out")
    require_task(manifest, task)
    cache = open_cache(evaluation.cache)
    is_scored, paths = evaluation.prepare(task, with_report=True)
    selected = evaluation.selected
    require_seconds(task, selected, split, cache.durations_of(selected.videos["video_id"]))
    require_same_cache(fingerprint, cache.fingerprint, evaluation.cache)
    evaluation.warnings += [cache.note] if cache.note else []
    model = model_for_classes(loaded, manifest.classes)
    predictions = predict_split(model, selected, CachedTokens(cache), on_progress)
    evaluation.write_predictions(paths, task, predictions, split)
    if evaluation.export is not None and evaluation.export.suffix.lower() == ".zip":
        for other in SUBMITTED_SPLITS:  # the server of QVHighlights takes both in one zip
            part = manifest.select(other) if other in manifest.splits and other != split else None
            if part is not None and all(video_id in cache for video_id in part.videos["video_id"]):
                more = predict_split(model, part, CachedTokens(cache), on_progress)
                evaluation.write_predictions([evaluation.export], task, more, other)
    if not is_scored:
        return evaluation.finish(task, None, predictions)
    if evaluation.train_split is None and recipe.data.train_split in manifest.splits:
        evaluation.floor_split = recipe.data.train_split
    report = evaluation.report(task, predictions) | described(where, recipe.train.precision) | _stated(paths, cache)
    report["recipe"] = {
        "name": recipe.name,
        "towers": asdict(recipe.towers),
        "tokens": {key: fingerprint.get(key) for key in TOKEN_KEYS},
        "checkpoint_selected_on": recipe.data.val_split or None,
    }
    if model is not loaded:
        report["classes_seen_in_training"] = names_in_vocabulary(manifest.classes, loaded.info.classes)["same"]
    return evaluation.finish(task, report, predictions)


def _stated(paths: list[Path], cache: Cache) -> dict[str, str]:
    written = {"predictions_sha256": file_sha256(paths[0])} if paths else {}
    return written | ({"note": cache.note} if cache.note else {})


def model_for_classes(loaded: LoadedModel, classes: tuple[str, ...]) -> LoadedModel:
    """The model with the classes of the manifest, where they are not those it was trained on (zero-shot).

    Raises InputError for a model whose head only knows the classes it was trained on.
    """
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"--manifest has {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))
