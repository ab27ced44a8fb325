"""A trained model from a run folder, a checkpoint or a model folder (`unloc package`), with all it needs to be used."""

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import huggingface_hub
import torch
from omegaconf import OmegaConf
from open_clip.model import CLIP
from safetensors import SafetensorError
from safetensors.torch import load_file

from unloc.annotations.schema import Manifest
from unloc.cache.writing import fingerprint_differences
from unloc.config import Recipe
from unloc.errors import FingerprintError, InputError, MissingError, UnlocError, one_line
from unloc.inference.existence import Calibration, read_calibration
from unloc.model.build import EndToEnd, build_model, weight_name
from unloc.model.clip import WeightSettings, clip_model, hub_is_offline
from unloc.model.unloc import UnLoc
from unloc.recipes import dump_recipe, recipe_from_dict, task_recipes

CHECKPOINT_VERSION = 2
LONGER_THAN_TRAINED = 1.25  # a video up to so many times as long as any of training is seen at once
OF_A_TASK = ("classes", "fingerprint", "video_seconds")  # what each of several tasks has of its own


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint records besides its weights."""

    recipe: Recipe  # resolved, as it was trained with
    classes: tuple[str, ...]  # names in their order; empty for query tasks
    frame_dim: int  # channels of a frame token
    text_dim: int  # channels of a text token
    fingerprint: dict  # which tower and preprocessing made the tokens it was trained on
    step: int  # optimizer steps done
    metrics: dict[str, float] = field(default_factory=dict)  # of the validation at this step
    live_towers: tuple[str, ...] = ()  # "image", "text": whose weights the checkpoint has; of others tokens are given
    video_seconds: tuple[float, float] | None = None  # of the training videos: median and longest
    tasks: dict[str, dict] = field(default_factory=dict)  # of several: `OF_A_TASK` of each

    def to_dict(self) -> dict:
        """As JSON; the recipe becomes its YAML text, which states every key and keeps inf."""
        values = {**asdict(self), "recipe": dump_recipe(self.recipe), "version": CHECKPOINT_VERSION}
        return {key: value for key, value in values.items() if key != "tasks" or self.tasks}

    def of_task(self, tasks: Collection[str] = ()) -> "CheckpointInfo":
        """What holds for one of several tasks: the first that is among `tasks`, else the first."""
        if not self.tasks:
            return self
        task = next((task for task in self.tasks if task in tasks), next(iter(self.tasks)))
        own = {key: self.tasks[task].get(key) for key in OF_A_TASK}
        own["classes"] = tuple(own["classes"])
        return replace(self, recipe=task_recipes(self.recipe)[task], **own)

    @property
    def window_seconds(self) -> tuple[float, float]:
        """Seconds of a typical video that the model was trained on, and of the longest that it sees at once."""
        if self.video_seconds is None:  # a checkpoint of an earlier version: one frame for each step, or one a second
            typical = self.recipe.data.num_steps / (self.fingerprint.get("sampling.fps") or 1.0)
            return typical, 4 * typical
        typical, longest = self.video_seconds
        return typical, LONGER_THAN_TRAINED * longest

    def build(self, clip: CLIP | None = None) -> UnLoc | EndToEnd:
        """The model with fresh weights; its live towers take over those of `clip`, if it is given."""
        if clip is None and self.live_towers:
            settings = WeightSettings(activation=self.fingerprint["tower.activation"])
            clip = clip_model(self.fingerprint["tower.name"], settings)
        sizes = {"frame_dim": self.frame_dim, "text_dim": self.text_dim, "num_classes": len(self.classes)}
        return build_model(self.recipe, **sizes, clip=clip, live=self.live_towers)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what its checkpoint records."""

    model: UnLoc | EndToEnd
    info: CheckpointInfo
    calibration: Calibration | None = None  # of models of sentences: whether a query is in a video at all
    folder: Path | None = None  # that it was loaded from

    @property
    def tower_weights(self) -> str | None:
        """Of the towers before this training: the file or run that the folder carries, or that the recipe names and is
        here; else their name.
        """
        named, stated = self.info.recipe.towers.pretrained, self.info.fingerprint.get("tower.pretrained")
        is_of_run = "+" in (stated or "")
        places = [*(self.folder.glob("tower/*") if self.folder else ()), *([Path(named)] if named else [])]
        return next((str(one) for one in places if one.is_file() or (is_of_run and one.is_dir())), stated)


def local_run(run: Path | str) -> Path:
    """The folder of a run or model; `owner/name` of the Hugging Face Hub, where it is no path here, is downloaded.

    `hf-hub:owner/name` is always one of the Hub. Raises MissingError where it cannot be had.
    """
    found = re.fullmatch(r"(hf-hub:)?([\w.-]+)/([\w.-]+)", str(run))
    if found is None or (found[1] is None and (Path(run).exists() or Path(found[2]).exists())):
        return Path(run)
    is_offline, patterns = hub_is_offline(), ["*.json", "*.safetensors", "README.md"]
    try:
        name = f"{found[2]}/{found[3]}"
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=is_offline))
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        reason = "not reachable, and not downloaded before" if is_offline else one_line(error)
        problem = f"is no folder here, and cannot be had from the Hugging Face Hub ({reason})"
        advice = "check the name, connect to the internet once, or copy the model folder from another machine"
        raise MissingError(f"{run}: {problem}; {advice}") from None


def load_model(run: Path | str, device: torch.device | str = "cpu", tasks: Collection[str] = ()) -> LoadedModel:
    """The model of a run folder (its best checkpoint, else its last), of a checkpoint or model folder or of a file in
    it, or of a name on the Hub (`local_run`).

    Of a run of several tasks that of one: the first that is among `tasks`, else its first.
    Raises MissingError where there is none, InputError where it is damaged or of another version.
    """
    run = local_run(run)
    candidates = [run.parent if run.is_file() else run, run / "checkpoints" / "best", run / "checkpoints" / "last"]
    folder = next((folder for folder in candidates if (folder / "checkpoint.json").is_file()), None)
    if folder is None:
        raise MissingError(f"{run}: no checkpoint here, in checkpoints/best or checkpoints/last; `unloc fit` makes one")
    try:
        info = read_info(folder).of_task(tasks)
        model, weights = info.build(), load_file(folder / "model.safetensors")
        if info.tasks:
            weights = {name: weights[weight_name(info.recipe.task, name)] for name in model.state_dict()}
        model.load_state_dict(weights)
    except UnlocError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: damaged checkpoint ({one_line(error)}); use another one, or train again") from None
    return LoadedModel(model.to(device).eval(), info, read_calibration(folder, info.recipe.task), folder.resolve())


def read_info(folder: Path) -> CheckpointInfo:
    """What checkpoint.json states, of all tasks. Raises InputError for another version, and as JSON and records do."""
    values = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    if (version := values.pop("version", None)) != CHECKPOINT_VERSION:
        advice = f"this unloc reads {CHECKPOINT_VERSION}; use the version of unloc that wrote it"
        raise InputError(f"{folder}: checkpoint version {version!r}, {advice}")
    recipe = OmegaConf.to_container(OmegaConf.create(values["recipe"]))
    values["recipe"] = recipe_from_dict(recipe, where=str(folder))
    lists = [key for key in ("classes", "live_towers", "video_seconds") if values.get(key) is not None]
    return CheckpointInfo(**values | {key: tuple(values[key]) for key in lists})


def model_for_classes(loaded: LoadedModel, classes: tuple[str, ...]) -> LoadedModel:
    """The model for other classes (zero-shot). Raises InputError where its head knows only its own."""
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"got {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))


def require_task(manifest: Manifest, task: str) -> None:
    """Raise InputError unless the manifest serves the task."""
    if task not in manifest.tasks:
        served = ", ".join(manifest.tasks)
        raise InputError(f"manifest {manifest.name!r} serves {served}, not {task}; give that of a {task} dataset")


def require_same_cache(trained_on: dict, fingerprint: dict, where: Path | str) -> None:
    """Raise FingerprintError naming every key that differs, but for views and batch."""
    ignored = {"views": ["centre"], "tower.batch": None}  # only training reads other views; a batch changes last bits
    one, other = (values | ignored for values in (trained_on, fingerprint))
    if differing := fingerprint_differences(one, other, names=("model", "cache")):
        problem = f"made by another tower or preprocessing than the model was trained on ({differing})"
        raise FingerprintError(f"{where}: {problem}; extract a cache with the model's tower and sampling")
