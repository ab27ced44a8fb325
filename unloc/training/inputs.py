"""What a run trains on: tokens of a cache, or frames that pass the image tower of the model (UnLoc §3.1)."""

import copy
import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP

from unloc.annotations.schema import Manifest, cached_durations, load_manifest, restricted
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache
from unloc.cache.writing import fingerprint_differences
from unloc.config import Recipe, TowersConfig
from unloc.errors import ConfigError, FingerprintError
from unloc.evaluation.evaluator import require_annotations, require_seconds, without_hidden
from unloc.examples.augment import ClipTransform, directed_videos
from unloc.examples.frame_source import FrameShards, VideoFiles
from unloc.examples.sources import CachedTokens, Source, Tokenize
from unloc.inference.load import require_task
from unloc.inference.run_tower import text_clip_of_run
from unloc.model.build import tower_choice
from unloc.model.clip import pretrained_clip
from unloc.model.towers import Tower, clip_ids, weights_sha256
from unloc.recipes import task_recipes
from unloc.tasks import task_named
from unloc.video.frame_shards import FrameSpec
from unloc.video.locate import index_videos
from unloc.video.preprocess import PreprocessSpec
from unloc.video.reading import FrameSampling

logger = logging.getLogger(__name__)
Places = Path | str | Mapping[str, Path | str]  # one for all tasks of a run, or each task's own


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Annotations, frames and texts of a task, and the towers that are part of its model."""

    train: Manifest | None = None  # the splits for training and validation with known durations (`load_inputs`)
    val: Manifest | None = None
    source: Source  # frames and texts as the model takes them
    fingerprint: dict  # which tower and preprocessing make the frame tokens that enter the core
    live: tuple[str, ...] = ()  # towers in the model: "image", "text"
    clip: CLIP | None = None  # what the live towers start as
    projections: Mapping[str, np.ndarray] = field(default_factory=dict)  # CLIP's own, where tokens are from before them
    note: str | None = None  # what a user should know


def load_inputs(recipe: Recipe, manifest: Places, data: Places, kind: str) -> dict[str, Inputs]:
    """The inputs of each task of a recipe. Raises InputError where a manifest does not serve its task; FingerprintError
    where tasks have tokens of different towers (their sampling may differ); and as `cached_inputs`, `frame_inputs` and
    `splits_of`.
    """
    inputs, towers = {}, {}
    for task, one in task_recipes(recipe).items():
        loaded = load_manifest(Path(manifest[task] if isinstance(manifest, Mapping) else manifest))
        require_task(loaded, task)
        place = data[task] if isinstance(data, Mapping) else data
        if kind == "cache":
            inputs[task] = cached_inputs(one, place)
        else:
            inputs[task] = frame_inputs(one, Path(place), loaded, packed=kind == "frames")
        fingerprint = inputs[task].fingerprint
        towers[task] = {key: fingerprint[key] for key in fingerprint if not key.startswith(("sampling.", "dtype"))}
        first = next(iter(towers))
        if differing := fingerprint_differences(towers[first], towers[task], names=(first, task)):
            raise FingerprintError(f"{place}: another tower made this than that of task {first} ({differing})")
        train, val = splits_of(one, loaded, inputs[task].source)
        inputs[task] = replace(inputs[task], clip=inputs[first].clip, train=train, val=val)  # one copy of weights
    return inputs


def splits_of(recipe: Recipe, manifest: Manifest, source: Source) -> tuple[Manifest, Manifest | None]:
    """The training and the validation split with known durations.

    Queries without segments are left out of training, as hidden, unless they are null queries to the recipe. Raises
    InputError where a split's cached videos have nothing for the task or not in seconds, MissingError for no split.
    """
    manifest = cached_durations(manifest, source)
    train = manifest.select(recipe.data.train_split)
    val = manifest.select(recipe.data.val_split) if recipe.data.val_split else None
    advices = "data.train_split=NAME trains on another", "data.val_split='' trains without validation"
    for selected, advice in zip([train, val], advices, strict=True):
        cached = selected and restricted(selected, source.__contains__)
        if cached and len(cached.videos):  # with none, the examples name those that are missing
            require_annotations(recipe.task, cached, cached.splits[0], advice, are_null=recipe.data.null_queries)
            require_seconds(recipe.task, cached, cached.splits[0], source.durations_of(cached.videos["video_id"]))
    if task_named(recipe.task).text_kind == "query" and not recipe.data.null_queries:
        train = without_hidden(recipe.task, train)
    elif recipe.task == "cls":
        labelled = train.filter(lambda table: table["video_id"].isin(train.instances["video_id"]))
        if left := len(train.videos) - len(labelled.videos):
            logger.warning("%d of %d videos have no label: not used in training", left, len(train.videos))
        train = labelled
    return train, val


def cached_inputs(recipe: Recipe, cache: Path | str) -> Inputs:
    """Tokens of a cache, and ids for a text tower that trains. Raises what the checks of a cache below raise."""
    opened = open_cache(cache)
    require_cache_of(recipe, opened.fingerprint, cache)
    require_projections(recipe, opened)
    values = {"fingerprint": opened.fingerprint, "projections": opened.projections, "note": opened.note}
    if not recipe.live_towers:
        return Inputs(**values, source=CachedTokens(opened))
    clip = clip_of_cache(recipe.towers, opened.fingerprint, cache)
    return Inputs(**values, source=CachedTokens(opened, tokenizer(recipe, clip)), clip=clip, live=("text",))


def frame_inputs(recipe: Recipe, folder: Path, manifest: Manifest, *, packed: bool) -> Inputs:
    """Frames for the recipe's towers, which are part of the model, trained or frozen: those that `unloc data pack
    --frames` made or, where they are not packed, those of the manifest's video files.

    Raises ConfigError where the recipe takes tokens from a cache, or other frames; TowerError as `pretrained_clip`;
    VideoError where the first video file does not decode.
    """
    towers, data, option = recipe.towers, recipe.data, "--frames" if packed else "--videos"
    live = ("image",) if recipe.model.fusion == "none" else ("image", "text")
    for key in live:
        if getattr(towers, key) == "cached":
            raise ConfigError(f"towers.{key}: cached, but {option} gives no tokens; set it to finetune or frozen")
    if towers.text_name != "clip" or not towers.name:
        raise ConfigError(f"towers.name: {option} needs a plain CLIP of open_clip, such as ViT-B-16, or toy")
    with torch.random.fork_rng(devices=[]):  # the weights above the towers do not depend on how they are made
        clip, pretrained, like = pretrained_clip(towers.name, towers.pretrained or None, None)
    tower = Tower(copy.deepcopy(clip), tower_choice(recipe), pretrained=pretrained, like=like)
    spec = PreprocessSpec(**tower.image_config)
    transform = ClipTransform(spec, recipe.augment, directed_videos(manifest))
    sampling, note, differing = {"num_frames": data.num_frames, "fps": data.fps}, None, []
    any_frames = sampling == {"num_frames": None, "fps": None}
    if packed:
        source = FrameShards(folder, tokenizer(recipe, clip), transform)
        for key, value in sampling.items():
            if not any_frames and value != source.packing[key]:
                differing.append(f"data.{key}: recipe {value}, packed {source.packing[key]}")
        sampling = {key: source.packing[key] for key in sampling}
    else:
        if any_frames:
            raise ConfigError("data.num_frames: --videos needs it, or data.fps; set data.num_frames=128 for example")
        files, _ = index_videos(folder).locate(manifest.videos)
        frames = FrameSpec(sampling=FrameSampling(**sampling))
        source = VideoFiles(folder, files, frames, tokenizer(recipe, clip), transform)
        note = source.cost()
    if towers.frame_embeddings and sampling["num_frames"] != data.num_steps:
        differing.append(f"towers.frame_embeddings: true needs {data.num_steps} frames (data.num_steps)")
    if differing:
        raise ConfigError(f"{folder}: not what recipe {recipe.name} names ({'; '.join(differing)}); pack these frames")
    parts = {"tower": tower.fingerprint, "preprocess": asdict(spec), "sampling": sampling}
    fingerprint = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    fingerprint = json.loads(json.dumps(fingerprint | {"dtype": "float32", "views": ["centre"]}))
    return Inputs(source=source, fingerprint=fingerprint, clip=clip, live=live, note=note)


def tokenizer(recipe: Recipe, clip: CLIP) -> Tokenize:
    """CLIP's ids of texts, as many as recipe and tower take."""
    return partial(clip_ids, max_tokens=min(recipe.data.max_text_tokens, clip.context_length))


def require_cache_of(recipe: Recipe, fingerprint: dict, cache: Path | str) -> None:
    """Refuse a cache whose tower or sampling is not what the recipe names, and a recipe that finetunes the image tower.

    Raises FingerprintError or ConfigError naming every key that differs, and the overrides with which the recipe names
    this cache; the run records them, and its name says which towers do not train (`recipes.load_recipe`).
    """
    towers, data = recipe.towers, recipe.data
    if towers.text_name != "clip":
        raise ConfigError(f"towers.text_name: got {towers.text_name}, but a cache holds CLIP's text tokens only")
    kind = towers.frame_token if "tower.frame_token" in fingerprint else ""
    named = [  # key of the fingerprint, override and option of extract that name it, the recipe's value
        ("tower.name", "towers.name", "--tower", towers.name),
        ("tower.pretrained", "towers.pretrained", "--pretrained", Path(towers.pretrained).name),
        ("tower.frame_token", "towers.frame_token", "--frame-token", kind),
    ]
    if data.num_frames is not None or data.fps is not None:
        named.append(("sampling.num_frames", "data.num_frames", "--frames", data.num_frames))
        named.append(("sampling.fps", "data.fps", "--fps", data.fps))
    differing, extracted, added = [], [], []
    for key, override, option, value in named:
        found = fingerprint.get(key)
        if value not in ("", found) and not f"{found}".endswith(f"+{value}"):  # of a run: WEIGHTS+RUN
            differing.append(f"{key}: recipe {value!r}, cache {found!r}")
            extracted += [] if value is None else [f"{option} {value}"]
            added.append(shlex.quote(f"{override}={'null' if found is None else found}"))
    is_other = bool(differing)
    if towers.image == "finetune":
        differing.append("towers.image: recipe 'finetune', but a cache holds the tokens of a frozen one")
        added.append("towers.image=cached")
    if recipe.live_towers and "tower.pretrained" not in fingerprint:
        differing.append("towers.text: recipe 'finetune', but it is not known which weights made the cache")
        added.append("towers.text=cached")
    if differing:
        problem = f"{cache}: not what recipe {recipe.name} names ({'; '.join(differing)})"
        advice = f"extract a cache with {' '.join(extracted)}, or " if extracted else ""
        advice += f"train only what is above these tokens by adding: {' '.join(added)}"
        raise (FingerprintError if is_other else ConfigError)(f"{problem}; {advice}")


def require_projections(recipe: Recipe, cache: Cache) -> None:
    """Raise ConfigError where the recipe trains a projection that the cache's tokens are behind already or have not."""
    has_texts = recipe.model.fusion != "none" and not recipe.live_towers
    for kind, is_asked, key, option in (
        ("frames", recipe.model.project_frames, "tower.projected", "--no-projection"),
        ("texts", recipe.model.project_texts and has_texts, "tower.texts_projected", "--no-text-projection"),
    ):
        if is_asked and kind not in cache.projections:
            why = {
                True: f"are behind it already ({key}: True); extract a cache with {option}",
                False: f"have none in {cache.path}/projections.json, as those of a residual network",
                None: "were imported, and it is not known what projected them",
            }[cache.fingerprint.get(key)]
            asked = f"model.project_{kind}: true trains CLIP's own projection"
            raise ConfigError(f"{asked}, but the {kind} of cache {cache.path} {why}, or set model.project_{kind}=false")


def clip_of_cache(towers: TowersConfig, fingerprint: dict, cache: Path | str) -> CLIP:
    """The CLIP with whose weights a cache was made. A weights file, or the run whose towers made the cache (of which
    only the text tower is taken), is found by `towers.pretrained`. Raises ConfigError where the path is not given,
    FingerprintError where the weights are others, TowerError where they cannot be had.
    """
    name, pretrained = fingerprint["tower.name"], fingerprint["tower.pretrained"]
    is_file = Path(towers.pretrained).is_file()
    is_of_run = "+" in pretrained and not is_file  # WEIGHTS+RUN
    if is_file:
        pretrained = towers.pretrained
    elif Path(pretrained).suffix or (is_of_run and not towers.pretrained):
        advice = "finetuning starts from it: give its path, towers.pretrained=PATH, or set towers.text=cached"
        raise ConfigError(f"towers.pretrained: {cache} was made with the weights file or run {pretrained!r}; {advice}")
    with torch.random.fork_rng(devices=[]):  # the weights above the tower do not depend on how it is made
        if is_of_run:
            clip, found = text_clip_of_run(Path(towers.pretrained))
        else:
            clip, *_ = pretrained_clip(name, pretrained, fingerprint.get("tower.like"))
            found = weights_sha256(clip)
    if found != fingerprint.get("tower.weights_sha256"):
        problem = f"the weights of {name} {pretrained} are not those that made {cache} (tower.weights_sha256 differs)"
        raise FingerprintError(f"towers.pretrained: {problem}; give the same weights, or extract a cache with these")
    return clip
