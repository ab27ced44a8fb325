"""`unloc fit`: check the input, build the trainer, start or resume, train."""

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unloc.annotations.schema import manifest_rows
from unloc.callbacks import OnProgress
from unloc.config import Recipe
from unloc.errors import ConfigError, InputError, UnlocError
from unloc.evaluation.evaluator import score, without_hidden
from unloc.examples.examples import Examples
from unloc.examples.loader import Loader, MixedLoader
from unloc.examples.sources import ClassTexts
from unloc.files import disk_full_errors, write_file
from unloc.inference.calibrate import calibrate_run
from unloc.inference.device import described, resolve_device
from unloc.inference.load import OF_A_TASK, CheckpointInfo, LoadedModel, load_model, require_same_cache
from unloc.inference.predict import EncodedInputs, predict_split
from unloc.inference.run_tower import fingerprint_of_run
from unloc.model.build import EndToEnd, SeveralTasks, models_by_task
from unloc.recipes import dump_recipe, task_recipes
from unloc.tasks import task_named
from unloc.training.distributed import copy_from_main, process_count, process_rank
from unloc.training.folder import environment, locked_run, logged, make_folder, read_json, require_wandb
from unloc.training.inputs import Inputs, Places, load_inputs
from unloc.training.trainer import MEAN_HEADLINE, OnStep, Trainer

logger = logging.getLogger(__name__)
FREE_PARTS = ("encoder.levels", "encoder.norm", "relevance_head", "displacement_head", "saliency_head", "logit_")


@dataclass(frozen=True)
class Processes:
    """Several processes that train a run, each with its own trainer (`rebuild_trainer`)."""

    count: int
    device: dict[str, str]  # what they use, as `described`
    fit: Callable[[Trainer], dict[str, float]]  # trains in place of `Trainer.fit`, from the state of the given trainer


def fit_recipe(
    recipe: Recipe,
    manifest: Places,
    data: Places,
    run: Path,
    *,
    kind: str = "cache",
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int = 0,
    loader_workers: int | None = None,
    init: Path | None = None,
    change_optim: bool = False,
    wandb: str | None = None,
    on_step: OnStep = lambda step, total, values: None,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Train a recipe on `data`, by `kind` a "cache", or a folder of packed "frames" or of "videos"; returns the last
    validation metrics.

    `init`: the run or checkpoint whose weights are the start (`start_from`), as the official recipes start from a
    pretrained UnLoc. `change_optim`: a resumed run takes other values of `optim`; env.json records from which step on.
    `loader_workers` prepare batches (None: 4 for a GPU, 0 for a CPU), which changes no result. `wandb`: a project of
    Weights & Biases to log to as well. `processes` train instead of this one, which then only prepares.

    Raises InputError where the folder holds a run and neither resume nor overwrite is asked for, or a resumed run was
    started on other data; ConfigError where it was started with another recipe; CacheError where another process trains
    into the folder, or the disk is full.
    """
    if wandb is not None:
        require_wandb()
    device_ = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    asked = {"resume": resume, "overwrite": overwrite, "change_optim": change_optim}
    with disk_full_errors(run), locked_run(run, recipe, **asked) as changes, logged() as log_to:
        # Every error of the input is found before anything is written, or deleted by overwrite.
        inputs = load_inputs(recipe, manifest, data, kind)
        for note in dict.fromkeys(one.note for one in inputs.values() if one.note):
            logger.warning(note)
        fingerprints = {task: one.fingerprint for task, one in inputs.items()}
        if resume and (run / "checkpoints").is_dir():
            known = read_json(run / "cache.json")
            for task, one in inputs.items():
                require_same_cache(known[task] if recipe.tasks else known, one.fingerprint, one.source.name)
        trainer = build_trainer(recipe, inputs, run, device=device_, loader_workers=loader_workers)
        if processes is None:
            used = described(device_, recipe.train.precision) | {"processes": 1, "threads": torch.get_num_threads()}
        else:
            used = processes.device | {"processes": processes.count}
            for task, loader in trainer.loader.loaders.items():
                _require_example_each(loader, trainer.recipes[task], processes.count)
        hashes = data_hashes(inputs)
        before = _resumed_environment(run, hashes, used) if resume else {"init": None, "changes": []}
        is_resumed = resume and trainer.resume()
        change = {"step": trainer.step, "changed": changes}  # from this step on, each key before and after
        is_new = bool(changes) and change not in before["changes"]
        history = before["changes"] + [change] * is_new
        if not is_resumed:
            init = init or before["init"]
            if init is not None:
                start_from(trainer, Path(init))
            known = fingerprints if recipe.tasks else fingerprints[recipe.task]
            record = {"data": hashes, "init": init and str(init), "changes": history}
            make_folder(run, recipe, known, environment(recipe.train.seed) | used | record, overwrite=overwrite)
        elif changes:
            write_file(run / "env.json", json.dumps(before | {"changes": history}, indent=1))
            write_file(run / "recipe.yaml", dump_recipe(recipe))
        log_to(run / "log.txt")
        encode_class_names(trainer)
        try:
            metrics = trainer.fit(on_step, wandb=wandb) if processes is None else processes.fit(trainer)
        except UnlocError as error:
            logger.info("ended: %s", error)
            raise
        held_out = {task: (one.val, one.source) for task, one in inputs.items() if one.val is not None}
        calibrate_run(run, held_out, device_)
        return metrics


def _require_example_each(loader: Loader, recipe: Recipe, count: int) -> None:
    """Raise ConfigError where a batch has not an example for each process that trains."""
    if (rows := len(loader.examples) // len(loader)) < count:
        problem = f"the smallest batch of split {recipe.data.train_split!r} has {rows} examples for {count} processes"
        advice = f"set a larger train.batch_size or --workers {rows}"
        raise ConfigError(f"train.batch_size: {recipe.train.batch_size}, but {problem}; {advice}")


def _resumed_environment(run: Path, hashes: dict[str, str], used: dict) -> dict:
    """env.json of a run that continues on the same data. Raises InputError for other data, warns of another device."""
    before = read_json(run / "env.json")
    names = {"manifest_sha256": "annotations (--manifest)", "videos_sha256": "cached videos (--cache)"}
    differing = [name for key, name in names.items() if before["data"][key] != hashes[key]]
    if differing:
        advice = f"resume on the same, or start a new run on these with --init {run}"
        raise InputError(f"{run}: was started on other {' and '.join(differing)}; {advice}")
    for key in [key for key, value in used.items() if before.get(key, value) != value]:
        now = f"{before[key]}, now {used[key]}"
        logger.warning("%s: the run was started with %s: the last bits of results may differ", key, now)
    return before


def rebuild_trainer(
    recipe: Recipe,
    manifest: Places,
    data: Places,
    run: Path,
    *,
    kind: str = "cache",
    device: torch.device | str = "cpu",
    loader_workers: int | None = None,
    start: dict[str, Tensor] | None = None,
) -> Trainer:
    """The trainer of a run that `fit_recipe` has prepared, in one of the processes that train it together. It is at the
    last checkpoint or, before the first, has the weights `start`, which only the main process needs.
    """
    inputs = load_inputs(recipe, manifest, data, kind)
    trainer = build_trainer(recipe, inputs, run, device=device, loader_workers=loader_workers)
    if not trainer.resume() and start is not None:
        for model in (trainer.model, trainer.predictor):
            model.load_state_dict(start)
    copy_from_main(trainer.model)
    encode_class_names(trainer)
    return trainer


def encode_class_names(trainer: Trainer) -> None:
    """Encode class names once where the text tower is frozen, not at every step; by the weights it has now."""
    for task, loader in trainer.loader.loaders.items():
        info, model = trainer.info.of_task([task]), trainer.models[task]
        if info.classes and "text" in info.live_towers and info.recipe.towers.text != "finetune":
            source = EncodedInputs(loader.examples.source, LoadedModel(model.eval(), info))
            loader.class_texts = ClassTexts(info.classes, source, info.recipe.data)


def build_trainer(
    recipe: Recipe,
    inputs: Mapping[str, Inputs],
    run: Path,
    *,
    device: torch.device | str = "cpu",
    loader_workers: int | None = None,
) -> Trainer:
    """Examples, loader, model and trainer of a recipe, with fresh weights of its seed; inputs by task."""
    torch.manual_seed(recipe.train.seed)
    is_cuda = torch.device(device).type == "cuda"
    if loader_workers is None:
        loader_workers = min(4, len(os.sched_getaffinity(0))) if is_cuda else 0
    options = {"share": (process_rank(), process_count()), "workers": loader_workers, "pin_memory": is_cuda}
    infos, loaders, models, recipes = {}, {}, {}, task_recipes(recipe)
    for task, one in recipes.items():
        infos[task], examples, class_texts = _prepared(one, inputs[task])
        loaders[task] = Loader(examples, class_texts, one, **options)
        clip = inputs[task].clip  # a model takes its towers over
        models[task] = infos[task].build(clip if task == [*recipes][-1] else copy.deepcopy(clip))
        core = models[task].core if isinstance(models[task], EndToEnd) else models[task]
        core.start_projections({key: torch.tensor(start) for key, start in inputs[task].projections.items()})
    info, loader, model = infos[task], loaders[task], models[task]
    if recipe.tasks:
        own = {key: {name: getattr(one, name) for name in OF_A_TASK} for key, one in infos.items()}
        info, model = replace(info, recipe=recipe, classes=(), tasks=own), SeveralTasks(models)
        weights = {key: stated["weight"] for key, stated in recipe.tasks.items() if "weight" in stated}
        loader = MixedLoader(loaders, weights, recipe.train.seed)
        logger.info("steps of an epoch: %s", ", ".join(f"{key} {count}" for key, count in loader.counts.items()))

    def validate(model: nn.Module, on_progress: OnProgress) -> dict[str, float]:
        """The metrics of a model, of several tasks joined."""
        found = {}
        for task, one in models_by_task(model, recipe).items():
            if (val := inputs[task].val) is not None:
                loaded = LoadedModel(one.eval(), infos[task])
                if recipes[task].data.null_queries:  # they calibrate; here they would count as misses
                    val = without_hidden(task, val)
                found[task] = score(task, predict_split(loaded, val, inputs[task].source, on_progress), val)
        return joined_metrics(found) if recipe.tasks else found[recipe.task]

    has_val = any(one.val is not None for one in inputs.values())
    return Trainer(model, info, loader, run, validate=validate if has_val else None, device=device)


def _prepared(recipe: Recipe, inputs: Inputs) -> tuple[CheckpointInfo, Examples, ClassTexts | None]:
    """What a checkpoint of a task records, its examples and the texts of its classes."""
    train, val, source, clip = inputs.train, inputs.val, inputs.source, inputs.clip
    examples = Examples(recipe.task, train, source, recipe.data)
    if len(examples) < recipe.train.batch_size:
        kind = "queries" if task_named(recipe.task).text_kind == "query" else "videos"
        problem = f"split {recipe.data.train_split!r} has {len(examples)} {kind} in the cache"
        advice = f"set train.batch_size={len(examples)} or less"
        raise ConfigError(f"train.batch_size: {recipe.train.batch_size}, but {problem}; {advice}")
    if val is not None:
        Examples(recipe.task, val, source, recipe.data)  # what it lacks is reported now, not after an epoch
        val.required_durations()
    has_classes = task_named(recipe.task).text_kind == "class"
    class_texts = ClassTexts(train.classes, source, recipe.data) if has_classes else None
    example, seconds = examples.example(0), [examples.durations[video] for video in dict.fromkeys(examples.videos)]
    frame_dim = inputs.fingerprint["tower.frame_dim"] if "image" in inputs.live else example.frames.shape[-1]
    if clip is not None:
        text_dim = int(clip.text_projection.shape[0 if recipe.model.project_texts else 1])
    else:
        text_dim = (class_texts.prompt(0)[0] if class_texts is not None else example.text).shape[-1]
    sizes = {"frame_dim": frame_dim, "text_dim": text_dim, "video_seconds": (float(np.median(seconds)), max(seconds))}
    made_by = {"fingerprint": inputs.fingerprint, "live_towers": inputs.live}
    classes = train.classes if has_classes else ()
    return CheckpointInfo(recipe=recipe, classes=classes, step=0, **sizes, **made_by), examples, class_texts


def joined_metrics(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics of several tasks as `task/metric`: the mean of the headline metrics, these, then all."""
    headlines = {f"{task}/{task_named(task).headline}": found[task].get(task_named(task).headline) for task in found}
    known = [value for value in headlines.values() if value is not None]
    every = {f"{task}/{key}": value for task, values in found.items() for key, value in values.items()}
    first = {MEAN_HEADLINE: sum(known) / len(known)} if known else {}
    return first | {key: every[key] for key in headlines if key in every} | every


def data_hashes(inputs: Mapping[str, Inputs]) -> dict[str, str]:
    """sha256 of the annotations that a run trains and validates on, and of their videos in their sources."""
    splits = [(part, one.source) for one in inputs.values() for part in (one.train, one.val) if part is not None]
    rows = [[part.classes, list(manifest_rows(part))] for part, _ in splits]
    ids = [(video_id, source) for part, source in splits for video_id in part.videos["video_id"] if video_id in source]
    values = {"manifest_sha256": rows, "videos_sha256": [(video_id, at.video_sha256(video_id)) for video_id, at in ids]}
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest() for key, value in values.items()}


def start_from(trainer: Trainer, init: Path) -> None:
    """Copy the weights of another run and log which, for each task that is trained.

    Projections, positions and fusion layers must all fit. Pyramid levels and heads of another task, or with fusion none
    of other classes, start fresh where they do not. On a cache that the run's image tower made, its towers are left
    out. Raises InputError naming what does not fit; FingerprintError for tokens of another tower (the sampling may
    differ).
    """
    for task, model in trainer.models.items():
        _start_task(model, trainer.info.of_task([task]), init)
    trainer.predictor.load_state_dict(trainer.model.state_dict())


def _start_task(model: nn.Module, info: CheckpointInfo, init: Path) -> None:
    loaded, made_by = load_model(init, tasks=[info.recipe.task]), info.fingerprint
    live, before = set(info.live_towers), set(loaded.info.live_towers)
    stated = loaded.info.fingerprint if "image" in live else fingerprint_of_run(init, loaded.info, made_by)
    same_tower = stated.get("tower.weights_sha256") == made_by.get("tower.weights_sha256")
    for tower in sorted(before - live):
        if "image" not in before or not same_tower:
            way = "--frames, or a cache that it made (`unloc extract --tower RUN`)"
            way = way if "image" in before else "towers.text=finetune"
            raise InputError(f"--init {init}: its {tower} tower is part of the model; continue with it: {way}")
    sampled = {key: value for key, value in made_by.items() if key.startswith("sampling.")}
    sampled["dtype"] = made_by.get("dtype")
    require_same_cache(stated | sampled, made_by | {"dtype": sampled["dtype"]}, init)
    own, other = model.state_dict(), loaded.model.state_dict()
    if before:  # towers that made the cache are left out
        towers = tuple(f"{tower}_tower." for tower in before - live)
        other = {key if live else key.removeprefix("core."): other[key] for key in other if not key.startswith(towers)}
    elif live:
        other = {f"core.{key}": value for key, value in other.items()}
    if "text" in live & before:  # a row for each of the recipe's text tokens
        key = "text_tower.positions"
        other[key] = torch.cat([other[key][: len(own[key])], own[key][len(other[key]) :]])
    start = tuple(f"{tower}_tower." for tower in live - before)  # as they were when the other run's tokens were made
    other |= {key: value for key, value in own.items() if key.startswith(start)}
    without_text = info.recipe.model.fusion == "none"
    is_other = without_text and loaded.info.classes != info.classes  # the outputs are the classes
    taken, unfit = {}, []
    for key in own | other:
        one, two = ("x".join(map(str, part[key].shape)) or "scalar" if key in part else "none" for part in (own, other))
        if one == two and not (is_other and "_head." in key and ".linear." in key):
            taken[key] = other[key]
        else:
            unfit.append(f"{key} ({one}, {two})")
    is_free = loaded.info.recipe.task != info.recipe.task or without_text
    wrong = [text for text in unfit if not (is_free and text.removeprefix("core.").startswith(FREE_PARTS))]
    if wrong:
        problem = f"{len(wrong)} tensors do not fit this recipe's model (its shape, --init's): {_shortened(wrong)}"
        advice = "give the recipe the sizes of the run (its recipe.yaml), or another --init"
        raise InputError(f"--init {init}: {problem}; {advice}")
    model.load_state_dict(taken, strict=False)
    of_task = f" for {info.recipe.task}" if info.tasks else ""
    summary = f"init from {init}{of_task}: {len(taken)} of {len(own)} tensors taken"
    if unfit:
        logger.warning("%s; fresh or left out (this model's shape, --init's): %s", summary, _shortened(unfit, most=40))
    else:
        logger.info(summary)


def _shortened(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
