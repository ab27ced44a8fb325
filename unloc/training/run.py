"""`unloc fit`: check the input, build the trainer, start or resume, train."""

import hashlib
import json
import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unloc.annotations.durations import cached_durations, required_durations
from unloc.annotations.schema import Manifest, load_manifest, manifest_rows
from unloc.annotations.subsets import restricted
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache
from unloc.config import Recipe
from unloc.errors import ConfigError, FingerprintError, InputError, UnlocError
from unloc.evaluation.evaluator import annotated_queries, require_annotations, require_seconds, score
from unloc.examples.examples import build_examples
from unloc.examples.loader import Loader
from unloc.examples.sources import CachedTokens, Source
from unloc.examples.texts import ClassTexts
from unloc.files import disk_full_errors, write_file
from unloc.inference.device import described, resolve_device
from unloc.inference.load import CheckpointInfo, LoadedModel, load_model, require_same_cache, require_task
from unloc.inference.predict import predict_split
from unloc.recipes import dump_recipe
from unloc.tasks import task_named
from unloc.training.folder import environment, locked, make_folder, read_json, require_folder
from unloc.training.logs import logged
from unloc.training.trainer import OnStep, Trainer

logger = logging.getLogger(__name__)
FREE_PARTS = ("encoder.levels", "encoder.norm", "relevance_head", "displacement_head", "saliency_head", "logit_")


def fit_recipe(
    recipe: Recipe,
    manifest: Path,
    cache: Path | str,
    run: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int = 0,
    init: Path | None = None,
    change_optim: bool = False,
    on_step: OnStep = lambda step, total, values: None,
) -> dict[str, float]:
    """Train a recipe into a run folder; returns the last validation metrics.

    `init` names a run or checkpoint whose weights are the start (`start_from`), as the official recipes start from a
    pretrained UnLoc. `change_optim` lets a resumed run continue with other values of `optim` than it was started with;
    env.json records from which step on.

    Raises InputError where the folder holds a run and neither resume nor overwrite is asked for, or a resumed run was
    started on other data; ConfigError where it was started with another recipe; CacheError where another process
    trains into the folder, or the disk is full.
    """
    device_ = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    loaded, opened = load_manifest(manifest), open_cache(cache)
    require_data(loaded, opened, recipe)
    require_cache_of(recipe, opened.fingerprint, cache)
    asked = {"resume": resume, "overwrite": overwrite, "change_optim": change_optim}
    require_folder(run, recipe, **asked)
    with disk_full_errors(run), locked(run), logged() as log_to:
        changes = require_folder(run, recipe, **asked)  # again, now that nobody else writes here
        if opened.note:
            logger.warning(opened.note)
        if resume and (run / "checkpoints").is_dir():
            require_same_cache(read_json(run / "cache.json"), opened.fingerprint, cache)
        # Every error of the input is found before anything is written, or deleted by overwrite.
        train, val = splits_of(recipe, loaded, CachedTokens(opened))
        trainer = build_trainer(recipe, train, val, opened, run, device=device_, on_step=on_step)
        used = described(device_, recipe.train.precision) | {"threads": torch.get_num_threads()}
        data = data_hashes([train, val], trainer.loader.examples.source)
        env = environment(recipe.train.seed) | used | {"data": data}
        before = read_json(run / "env.json") if resume else {"changes": []}
        if resume:
            names = {"manifest_sha256": "annotations (--manifest)", "videos_sha256": "cached videos (--cache)"}
            differing = [name for key, name in names.items() if before["data"][key] != data[key]]
            if differing:
                raise InputError(
                    f"{run}: was started on other {' and '.join(differing)}; resume on the same, or start a new run on "
                    f"these with --init {run}"
                )
            for key in [key for key, value in used.items() if before[key] != value]:
                now = f"{before[key]}, now {used[key]}"
                logger.warning("%s: the run was started with %s: the last bits of results may differ", key, now)
            init = init or (Path(before["init"]) if before["init"] else None)
        if resume and trainer.resume():
            if changes:
                env = before | {"changes": _with_change(before, trainer.step, changes)}
                write_file(run / "env.json", json.dumps(env, indent=1))
                write_file(run / "recipe.yaml", dump_recipe(recipe))
        else:
            if init is not None:
                start_from(trainer, init)
            env |= {"init": str(init) if init is not None else None, "changes": _with_change(before, 0, changes)}
            make_folder(run, recipe, opened.fingerprint, env, overwrite=overwrite)
        log_to(run / "log.txt")
        try:
            return trainer.fit()
        except UnlocError as error:
            logger.info("ended: %s", error)
            raise


def _with_change(env: dict, step: int, changes: dict[str, list]) -> list[dict]:
    """The recorded changes of the recipe and this one: from which step on, each key before and after."""
    change = {"step": step, "changed": changes}
    return env["changes"] if not changes or change in env["changes"] else [*env["changes"], change]


def splits_of(recipe: Recipe, manifest: Manifest, source: Source) -> tuple[Manifest, Manifest | None]:
    """The training and the validation split with known durations.

    Queries whose annotations are hidden are left out of training: they would teach that nothing is to be found.
    """
    manifest = cached_durations(manifest, source)
    train = manifest.select(recipe.data.train_split)
    if task_named(recipe.task).text_kind == "query":
        shown = annotated_queries(recipe.task, train.queries)
        train = replace(train, queries=train.queries[shown].reset_index(drop=True))
    return train, manifest.select(recipe.data.val_split) if recipe.data.val_split else None


def build_trainer(
    recipe: Recipe,
    train: Manifest,
    val: Manifest | None,
    cache: Cache,
    run: Path,
    *,
    device: torch.device | str = "cpu",
    on_step: OnStep = lambda step, total, values: None,
) -> Trainer:
    """Examples, loader, model and trainer of a recipe, with fresh weights of its seed."""
    torch.manual_seed(recipe.train.seed)
    source = CachedTokens(cache)
    examples = build_examples(recipe.task, train, source, recipe.data)
    if len(examples) < recipe.train.batch_size:
        kind = "queries" if task_named(recipe.task).text_kind == "query" else "videos"
        raise ConfigError(
            f"train.batch_size: {recipe.train.batch_size}, but split {recipe.data.train_split!r} has {len(examples)} "
            f"{kind} in the cache; set train.batch_size={len(examples)} or less"
        )
    if val is not None:
        build_examples(recipe.task, val, source, recipe.data)  # what it lacks is reported now, not after an epoch
        required_durations(val)
    has_classes = task_named(recipe.task).text_kind == "class"
    class_texts = ClassTexts(train.classes, source, recipe.data) if has_classes else None
    example = examples.example(0)
    info = CheckpointInfo(
        recipe=recipe,
        classes=train.classes if has_classes else (),
        frame_dim=example.frames.shape[-1],
        text_dim=(class_texts.prompt(0)[0] if class_texts is not None else example.text).shape[-1],
        fingerprint=cache.fingerprint,
        step=0,
    )
    model = info.build()
    require_projections(recipe, cache)
    model.start_projections({kind: torch.tensor(start) for kind, start in cache.projections.items()})

    def validate(model: nn.Module) -> dict[str, float]:
        return score(recipe.task, predict_split(LoadedModel(model.eval(), info), val, source), val)

    loader, validated = Loader(examples, class_texts, recipe), None if val is None else validate
    return Trainer(model, info, loader, run, validate=validated, device=device, on_step=on_step)


def require_projections(recipe: Recipe, cache: Cache) -> None:
    """Raise ConfigError where the recipe trains a projection whose start the cache does not have: its tokens are behind
    the projection already, or have none.
    """
    config, fingerprint = recipe.model, cache.fingerprint
    asked = {
        "frames": (config.project_frames, "tower.projected", "--no-projection"),
        "texts": (config.project_texts and config.fusion != "none", "tower.texts_projected", "--no-text-projection"),
    }
    for kind, (is_asked, key, option) in asked.items():
        if is_asked and kind not in cache.projections:
            why = {
                True: f"are behind it already ({key}: True); extract a cache with {option}",
                False: f"have none in {cache.path}/projections.json, as those of a residual network",
                None: "were imported, and it is not known what projected them",
            }[fingerprint.get(key)]
            raise ConfigError(
                f"model.project_{kind}: true trains CLIP's own projection, but the {kind} of cache {cache.path} {why}, "
                f"or set model.project_{kind}=false"
            )


def data_hashes(splits: list[Manifest | None], source: Source) -> dict[str, str]:
    """sha256 of the annotations that a run trains and validates on, and of their videos in the source."""
    parts = [part for part in splits if part is not None]
    rows = [[part.classes, list(manifest_rows(part))] for part in parts]
    ids = [video_id for part in parts for video_id in part.videos["video_id"] if video_id in source]
    values = {"manifest_sha256": rows, "videos_sha256": [(video_id, source.video_sha256(video_id)) for video_id in ids]}
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest() for key, value in values.items()}


def require_data(manifest: Manifest, cache: Cache, recipe: Recipe) -> None:
    """Raise InputError where the manifest serves another task, or a split has nothing for it in its cached videos or
    not in seconds; MissingError where it lacks a split of the recipe.
    """
    require_task(manifest, recipe.task)
    for key, advice in (
        ("train_split", "data.train_split=NAME trains on another"),
        ("val_split", "data.val_split='' trains without validation"),
    ):
        split = getattr(recipe.data, key)
        if split:
            selected = restricted(manifest.select(split), lambda video_id: video_id in cache)
            if len(selected.videos):  # with none, the examples name those that are missing
                require_annotations(recipe.task, selected, split, advice)
                require_seconds(recipe.task, selected, split, cache.durations_of(selected.videos["video_id"]))


def require_cache_of(recipe: Recipe, fingerprint: dict, cache: Path | str) -> None:
    """Refuse a cache whose tower or sampling is not what the recipe names, and a recipe that finetunes a tower: a cache
    holds the tokens of frozen towers.

    Raises FingerprintError or ConfigError naming every key that differs, and the overrides with which the recipe names
    this cache; the run records them, and its name says which towers do not train (`recipes.load_recipe`).
    """
    towers, data = recipe.towers, recipe.data
    if towers.text_name != "clip":
        raise ConfigError(f"towers.text_name: got {towers.text_name}, but a cache holds CLIP's text tokens only")
    kind = towers.frame_token if "tower.frame_token" in fingerprint else ""
    named = [  # key of the fingerprint, override and option of extract that name it, the recipe's value
        ("tower.name", "towers.name", "--tower", towers.name),
        ("tower.pretrained", "towers.pretrained", "--pretrained", towers.pretrained),
        ("tower.frame_token", "towers.frame_token", "--frame-token", kind),
    ]
    if data.num_frames is not None or data.fps is not None:
        named.append(("sampling.num_frames", "data.num_frames", "--frames", data.num_frames))
        named.append(("sampling.fps", "data.fps", "--fps", data.fps))
    differing, extracted, added = [], [], []
    for key, override, option, value in named:
        found = fingerprint.get(key)
        if value not in ("", found):
            differing.append(f"{key}: recipe {value!r}, cache {found!r}")
            extracted += [] if value is None else [f"{option} {value}"]
            added.append(shlex.quote(f"{override}={'null' if found is None else found}"))
    is_other = bool(differing)
    for tower in ("image", "text"):
        if getattr(towers, tower) == "finetune":
            differing.append(f"towers.{tower}: recipe 'finetune', but a cache holds the tokens of frozen towers")
            added.append(f"towers.{tower}=cached")
    if differing:
        advice = f"extract a cache with {' '.join(extracted)}, or " if extracted else ""
        raise (FingerprintError if is_other else ConfigError)(
            f"{cache}: not what recipe {recipe.name} names ({'; '.join(differing)}); {advice}train only what is above "
            f"these tokens by adding: {' '.join(added)}"
        )


def start_from(trainer: Trainer, init: Path) -> None:
    """Copy the weights of another run and log which.

    Projections, positions and fusion layers must all fit. Pyramid levels and heads may be others where the run was of
    another task or, with fusion none, of other classes; those that do not fit start fresh. Raises InputError naming
    what should fit and does not; FingerprintError for tokens of another tower (the sampling may differ).
    """
    loaded = load_model(init)
    sampled = {key: value for key, value in trainer.info.fingerprint.items() if key.startswith("sampling.")}
    require_same_cache(loaded.info.fingerprint | sampled, trainer.info.fingerprint, init)
    own, other = trainer.model.state_dict(), loaded.model.state_dict()
    taken = {key: value for key, value in other.items() if key in own and own[key].shape == value.shape}
    without_text = trainer.recipe.model.fusion == "none"
    if without_text and loaded.info.classes != trainer.info.classes:  # the outputs are the classes
        taken = {key: value for key, value in taken.items() if "_head." not in key or ".linear." not in key}
    unfit = [f"{key} ({_shape(own, key)}, {_shape(other, key)})" for key in own | other if key not in taken]
    is_free = loaded.info.recipe.task != trainer.recipe.task or without_text
    wrong = [text for text in unfit if not (is_free and text.startswith(FREE_PARTS))]
    if wrong:
        raise InputError(
            f"--init {init}: {len(wrong)} tensors do not fit this recipe's model (its shape, --init's): "
            f"{_shortened(wrong)}; give the recipe the sizes of the run (its recipe.yaml), or another --init"
        )
    trainer.start_from(taken)
    summary = f"init from {init}: {len(taken)} of {len(own)} tensors taken"
    if unfit:
        logger.warning("%s; fresh or left out (this model's shape, --init's): %s", summary, _shortened(unfit, most=40))
    else:
        logger.info(summary)


def _shape(state: dict[str, Tensor], key: str) -> str:
    return "x".join(map(str, state[key].shape)) or "scalar" if key in state else "none"


def _shortened(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
