"""Recipes: what to train, as frozen dataclasses with the paper's values as defaults.

A recipe file (YAML) states only what differs from the defaults, or from its base (`recipe_files`); `key=value`
overrides go on top. Unknown keys are refused with a suggestion. Sources: UnLoc §3-4 and the official configurations
(where they differ the field says so).
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unloc.errors import ConfigError
from unloc.recipe_files import recipe_name, recipe_path, stated_values


def _one_of(section: str, key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{section}.{key}: got {value!r}, expected one of {', '.join(allowed)}")


def _at_least(section: str, key: str, value: float, minimum: float) -> None:
    if not value >= minimum:
        raise ConfigError(f"{section}.{key}: got {value}, expected at least {minimum}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Fusion, pyramid and heads (UnLoc §3.2-3.3; official widths)."""

    width: int = 512
    """Channels of fusion, pyramid and heads (Base 512, Large 768)."""
    num_heads: int = 8
    """Attention heads (Base 8, Large 12)."""
    mlp_width: int = 2048
    """Hidden channels of the fusion MLPs (Base 2048, Large 3072)."""
    num_layers: int = 6
    """Fusion layers."""
    fusion: str = "mid"
    """mid: the paper's; late: cosine of frame and text; none: class logits without text (Table 3)."""
    text_tokens: str = "all"
    """all: every text token with its mask (paper's best); eos: one token (the official configurations)."""
    positions: str = "sinusoidal"
    """sinusoidal, learned or none, over frames then text."""
    pyramid: str = "simple"
    """simple (ViTDet), fpn (max-pool inside the encoder, top-down sum) or none (Table 1)."""
    num_levels: int = 4
    """Pyramid levels; level l has stride 2^l. Ignored by pyramid none."""
    head: str = "conv"
    """conv: conv blocks per point; linear: one linear layer (official AS head)."""
    num_head_convs: int = 3
    """Conv blocks of a head, 1-4 (paper 3; official TAL 4)."""
    share_heads: bool = True
    """One head for all levels, with a scale and shift per level, or a head per level."""
    class_bias: float = 0.0
    """Initial bias of the relevance logit (official: TAL -5, MR 0, COIN -6.6)."""
    displacement_bias: float = 2.0
    """Initial bias of the displacements (official: 2, Charades-STA 0)."""
    saliency_head: bool = False
    """A score per level-0 step beside the segments (HD)."""
    dropout: float = 0.0
    """Dropout of the fusion transformer (official: 0)."""
    max_texts_in_flight: int = 0
    """Texts fused at once, the rest after them with activation checkpointing; 0: all at once."""

    def __post_init__(self) -> None:
        _one_of("model", "fusion", self.fusion, ("mid", "late", "none"))
        _one_of("model", "text_tokens", self.text_tokens, ("all", "eos"))
        _one_of("model", "positions", self.positions, ("sinusoidal", "learned", "none"))
        _one_of("model", "pyramid", self.pyramid, ("simple", "fpn", "none"))
        _one_of("model", "head", self.head, ("conv", "linear"))
        _at_least("model", "num_levels", self.num_levels, 1)
        _at_least("model", "num_layers", self.num_layers, 1)
        if not 1 <= self.num_head_convs <= 4:
            raise ConfigError(f"model.num_head_convs: got {self.num_head_convs}, expected 1 to 4")
        if self.pyramid == "fpn" and self.num_levels > self.num_layers:
            raise ConfigError(
                f"model.num_levels: {self.num_levels} levels need as many layers for pyramid fpn, got {self.num_layers}"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"model.width: {self.width} is not a multiple of model.num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig:
    """Which points are positive (official: dataset_utils; spec §2.2)."""

    range_edges: list[float] = field(default_factory=lambda: [0.0, 4.0, 8.0, 16.0, math.inf])
    """Edges of the regression ranges in level-0 steps: level l takes [edge_l, edge_l+1)."""
    radius: float = 3.0
    """Centre sampling: positives lie within radius x 2^l steps of the segment's centre; inf turns it off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Losses (UnLoc §3.3; spec §3)."""

    relevance: str = "focal"
    """focal or sigmoid."""
    relevance_weight: float = 10.0
    """Factor of the relevance loss (official 10)."""
    focal_alpha: float = 0.25
    """Focal weight of positives."""
    focal_gamma: float = 2.0
    """Focal exponent."""
    box: str = "iou"
    """Sum of l1, l1_over_union, iou, diou, each with an optional factor: `iou`, `l1+iou`, `0.8*iou+l1`."""
    saliency_weight: float = 1.0
    """Factor of the saliency loss where there is a saliency head."""

    def __post_init__(self) -> None:
        _one_of("loss", "relevance", self.relevance, ("focal", "sigmoid"))


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """From outputs to predictions (spec §5)."""

    score_threshold: float = 0.001
    """Predictions at or below this score are dropped."""
    nms_sigma: float = 0.3
    """Gaussian Soft-NMS: an overlap of IoU u keeps exp(-u^2 / (2 sigma)) of the score."""
    max_detections: int = 100
    """Predictions kept per query, or per video over all classes."""
    nms_per_class: bool = False
    """Soft-NMS within each class instead of over all classes (TAL)."""
    background_logit: float = 0.0
    """AS: a step whose best logit is at or below this is background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What one example holds."""

    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split that selects the best checkpoint; empty: none."""
    num_steps: int = 128
    """Level-0 steps T of one example."""
    max_text_tokens: int = 32
    """Text tokens kept (EOS survives truncation)."""
    prompts: bool = False
    """Class names through the 28 CLIP Kinetics prompts: a random one in training, see prompt_ensembling."""
    prompt_ensembling: bool = True
    """Evaluation with prompts: outputs averaged over all 28; false: the first prompt alone (Tables 6 and 7)."""
    jitter: bool = False
    """Training: frames at random times within their step, instead of the nearest."""
    crop_probability: float = 0.0
    """Training: probability to see a random part of the video that keeps the segments' events whole."""
    crop_min_fraction: float = 0.5
    """Training: smallest part of the video that a crop keeps."""
    coverage: float = 1.0
    """Smallest share of a split's videos that must be in the cache; what is missing is named either way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule (spec §4.1)."""

    name: str = "sgd"
    """sgd (momentum 0.9, the official choice) or adamw."""
    lr: float = 0.1
    """Peak learning rate of fusion and heads."""
    tower_lr: float = 0.01
    """Peak learning rate of towers and projections, where they train."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 0.0
    """Decoupled for AdamW, L2 for SGD; never on biases and norms."""
    schedule: str = "constant"
    """After warm-up: constant, cosine (to 0) or step (x0.1 at each of step_epochs)."""
    step_epochs: list[float] = field(default_factory=list)
    """Epochs at which schedule step multiplies the rate by 0.1."""
    warmup_epochs: float = 2.5
    """Linear warm-up from 0."""
    clip_norm: float = 1.0
    """Global-norm gradient clipping; 0: off."""

    def __post_init__(self) -> None:
        _one_of("optim", "name", self.name, ("sgd", "adamw"))
        _one_of("optim", "schedule", self.schedule, ("constant", "cosine", "step"))
        _at_least("optim", "lr", self.lr, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop."""

    epochs: float = 20.0
    """Passes over the training split."""
    batch_size: int = 64
    """Videos (TAL, AS) or queries (MR, HD) per step, over all processes."""
    eval_every_epochs: float = 1.0
    """Validation interval."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation; 0: off (official)."""
    negatives: str = "batch"
    """MR: batch: every caption against every video of the batch (official); own: its own video only."""
    classes_per_video: int = 0
    """TAL, AS: class names fused with each video per step, its own first, then random others; 0: all (official)."""
    precision: str = "fp32"
    """fp32 or bf16 (autocast)."""
    seed: int = 0
    """Seed of weights, order and sampling."""

    def __post_init__(self) -> None:
        _one_of("train", "negatives", self.negatives, ("batch", "own"))
        _one_of("train", "precision", self.precision, ("fp32", "bf16"))
        _at_least("train", "batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One training job."""

    name: str = "unnamed"
    """Name of the recipe (the file's stem)."""
    task: str = "mr"
    """mr, tal, as or hd."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Fusion, pyramid, heads."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """Which points are positive."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """From outputs to predictions."""
    data: DataConfig = field(default_factory=DataConfig)
    """What one example holds."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""

    def __post_init__(self) -> None:
        _one_of("recipe", "task", self.task, ("mr", "tal", "as", "hd"))
        ranges, levels = len(self.targets.range_edges) - 1, self.model.num_levels
        levels = 1 if self.model.pyramid == "none" else levels
        if self.task != "as" and ranges != levels:
            raise ConfigError(
                f"targets.range_edges: {ranges} ranges for {levels} pyramid levels; give one per level "
                "(without a pyramid: [0, inf])"
            )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML path over its bases, with `key=value` overrides on top.

    The override `base=NAME` puts the recipe on another base than its own. Raises MissingError where a file does not
    exist, ConfigError naming the file and the key that is unknown or impossible.
    """
    path = recipe_path(name_or_path)
    changes = _dotted(overrides)
    base = changes.pop("base", None)
    layers = [*stated_values(path, base), ("override", changes)]
    for where, values in layers:
        _refuse_unknown(Recipe, values, where=str(where))
    merged = OmegaConf.to_container(OmegaConf.merge(*(values for _, values in layers)))
    return recipe_from_dict({"name": recipe_name(path)} | merged, where=str(path))


def _dotted(overrides: Sequence[str]) -> dict:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"override: {' '.join(overrides)}: expected key=value pairs ({words})") from None


def recipe_from_dict(values: dict, *, where: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    _refuse_unknown(Recipe, values, where=where)
    try:
        schema = OmegaConf.structured(Recipe)
        OmegaConf.set_readonly(schema, False)
        merged = _merge_writable(schema, values)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        raise ConfigError(f"{where}: {key}: {str(error).splitlines()[0]}") from None


def _merge_writable(schema: Any, values: dict) -> Any:
    for value in schema.values():
        if OmegaConf.is_config(value):
            OmegaConf.set_readonly(value, False)
    return OmegaConf.merge(schema, values)


def _refuse_unknown(cls: type, values: dict, *, where: str, prefix: str = "") -> None:
    known = {item.name: item for item in fields(cls)}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {hint}")
        if is_dataclass(known[key].type):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix}{key}: got {value!r}, expected a section of keys")
            _refuse_unknown(known[key].type, value, where=where, prefix=f"{prefix}{key}.")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key stated."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
