"""A trained model from a run folder or a checkpoint folder, with all it needs to be used."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache, completed
from unloc.cache.writing import fingerprint_differences
from unloc.config import Recipe
from unloc.errors import ConfigError, FingerprintError, InputError, MissingError, UnlocError
from unloc.model.unloc import UnLoc
from unloc.recipes import dump_recipe, recipe_from_dict
from unloc.tasks import task_named

CHECKPOINT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    recipe: Recipe
    """The resolved recipe it was trained with."""
    classes: tuple[str, ...]
    """Class names in their order; empty for query tasks."""
    frame_dim: int
    """Channels of a frame token."""
    text_dim: int
    """Channels of a text token."""
    fingerprint: dict
    """Which tower and preprocessing made the tokens it was trained on."""
    step: int
    """Optimiser steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics at this step."""

    def to_dict(self) -> dict:
        """As JSON; the recipe becomes its YAML text, which states every key and keeps inf."""
        values = {**asdict(self), "recipe": dump_recipe(self.recipe), "version": CHECKPOINT_VERSION}
        return values

    @classmethod
    def from_dict(cls, values: dict, *, where: str) -> "CheckpointInfo":
        """From JSON. Raises InputError for a checkpoint of another version."""
        if values.get("version") != CHECKPOINT_VERSION:
            raise InputError(
                f"{where}: checkpoint version {values.get('version')!r}, this unloc reads {CHECKPOINT_VERSION}; "
                "use the version of unloc that wrote it"
            )
        recipe = recipe_from_dict(OmegaConf.to_container(OmegaConf.create(values["recipe"])), where=where)
        rest = {key: value for key, value in values.items() if key not in ("version", "recipe", "classes")}
        rest["fingerprint"] = completed(values["fingerprint"])
        return cls(recipe=recipe, classes=tuple(values["classes"]), **rest)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode beside what its checkpoint says."""

    model: UnLoc
    info: CheckpointInfo


def build_model(info: CheckpointInfo) -> UnLoc:
    """The model a checkpoint describes, with fresh weights."""
    recipe = info.recipe
    num_classes = len(info.classes) if recipe.model.fusion == "none" else None
    return UnLoc(
        recipe.model,
        info.frame_dim,
        info.text_dim,
        recipe.data.num_steps,
        num_classes=num_classes,
        localizes=task_named(recipe.task).localizes,
    )


def start_projections(model: UnLoc, info: CheckpointInfo, cache: Cache) -> None:
    """Let a fresh model's projections begin as those of the cache's tower, where its tokens are kept before them.

    Raises ConfigError where the recipe trains a projection whose start the cache does not have: its tokens lie behind
    the projection already, or have none.
    """
    config, fingerprint = info.recipe.model, completed(cache.fingerprint)
    asked = {
        "frames": (config.project_frames, "tower.projected", "--no-projection"),
        "texts": (config.project_texts and config.fusion != "none", "tower.texts_projected", "--no-text-projection"),
    }
    for kind, (is_asked, key, option) in asked.items():
        if is_asked and kind not in cache.projections:
            why = {
                True: f"lie behind it already ({key}: True); extract a cache with {option}",
                False: f"have none in {cache.path}/projections.json; a residual network has none, an older cache gets "
                "it by the same `unloc extract` again",
                None: "were imported, and it is not known what projected them",
            }[fingerprint.get(key)]
            raise ConfigError(
                f"model.project_{kind}: true trains CLIP's own projection, but the {kind} of cache {cache.path} {why}, "
                f"or set model.project_{kind}=false"
            )
    model.start_projections({kind: torch.tensor(start) for kind, start in cache.projections.items()})


def load_model(run: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a run folder (its best checkpoint, else its last), of one checkpoint folder or of a file in it.

    Raises MissingError where there is none, InputError where it is damaged.
    """
    folder = checkpoint_folder(Path(run))
    try:
        values = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        info = CheckpointInfo.from_dict(values, where=str(folder))
        model = build_model(info)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except UnlocError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:120]
        raise InputError(f"{folder}: damaged checkpoint ({words}); use another one, or train again") from None
    return LoadedModel(model.to(device).eval(), info)


def checkpoint_folder(run: Path) -> Path:
    """Where the checkpoint of a run lies. Raises MissingError saying where it looked."""
    candidates = [run.parent if run.is_file() else run, run / "checkpoints" / "best", run / "checkpoints" / "last"]
    for folder in candidates:
        if (folder / "checkpoint.json").is_file():
            return folder
    raise MissingError(
        f"{run}: no checkpoint here (looked for checkpoints/best, checkpoints/last); `unloc fit` makes one"
    )


def require_task(manifest: Manifest, task: str) -> None:
    """Raise InputError unless the manifest serves the task."""
    if task not in manifest.tasks:
        served = ", ".join(manifest.tasks)
        raise InputError(
            f"manifest {manifest.name!r} serves {served}, not {task}; give the manifest of a {task} dataset"
        )


def require_same_cache(trained_on: dict, fingerprint: dict, where: Path | str) -> None:
    """Refuse a cache made by another tower or preprocessing than the model was trained on.

    Views do not count: whatever else a cache has, the first is the centre, and only training reads others. Nor does
    the batch size, by which the tokens of a GPU and of a CPU differ in their last bits. Raises
    FingerprintError naming every key that differs and both values.
    """
    ignored = {"views": ["centre"], "tower.batch": None}
    one, other = (completed(values) | ignored for values in (trained_on, fingerprint))
    differing = fingerprint_differences(one, other, names=("model", "cache"))
    if differing:
        raise FingerprintError(
            f"{where}: made by another tower or preprocessing than the model was trained on ({differing}); "
            "extract a cache with the model's tower and sampling"
        )
