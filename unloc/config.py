"""Recipes: what to train, as frozen dataclasses with the paper's values as defaults.

A recipe file (YAML) states only what differs from the defaults, or from its base (`recipe_files`); `key=value`
overrides go on top. Unknown keys are refused with a suggestion. Sources: UnLoc §3-4 and the official configurations
(where they differ the field says so).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from unloc.config_checks import (
    MAX_TEXT_TOKENS,
    above_zero,
    all_finite,
    at_least,
    between,
    check_range_edges,
    check_variant,
    one_of,
    parse_box_terms,
)
from unloc.config_values import built, dotted_values, merged_values
from unloc.errors import ConfigError
from unloc.recipe_files import recipe_name, recipe_path, shipped_recipes, stated_values

MAX_EPOCHS = 1_000_000.0


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
    displacements: str = "per_text"
    """per_text: every class or caption its own (paper §3.4); shared: one pair for all classes, from features averaged
    over them (class tasks), which learns the shortest segment at each point. Late fusion always shares them."""
    project_frames: bool = False
    """A linear layer without bias over frame tokens of any width (official: tokens before CLIP's own projection, this
    layer starting from it); false: only where they are not as wide as the fusion."""
    project_texts: bool = False
    """The same for text tokens."""
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
        one_of("model", "fusion", self.fusion, ("mid", "late", "none"))
        one_of("model", "text_tokens", self.text_tokens, ("all", "eos"))
        one_of("model", "positions", self.positions, ("sinusoidal", "learned", "none"))
        one_of("model", "pyramid", self.pyramid, ("simple", "fpn", "none"))
        one_of("model", "head", self.head, ("conv", "linear"))
        one_of("model", "displacements", self.displacements, ("per_text", "shared"))
        most = {"width": 16384, "num_heads": 1024, "mlp_width": 65536, "num_layers": 128, "num_levels": 12}
        for key, limit in most.items():
            between("model", key, getattr(self, key), 1, limit)
        between("model", "max_texts_in_flight", self.max_texts_in_flight, 0, 1_000_000)
        between("model", "num_head_convs", self.num_head_convs, 1, 4)
        between("model", "dropout", self.dropout, 0.0, 0.99)
        if self.pyramid == "fpn" and self.num_levels > self.num_layers:
            raise ConfigError(
                f"model.num_levels: {self.num_levels} levels need as many layers for pyramid fpn, got {self.num_layers}"
            )
        if self.width % self.num_heads or self.width % 2:
            raise ConfigError(
                f"model.width: {self.width} is not a multiple of model.num_heads {self.num_heads} and of 2"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Image and text tower (UnLoc §3.1, Tables 2 and 4)."""

    name: str = ""
    """open_clip's name, such as ViT-B-16 or ViT-L-14; empty: whichever made the cache."""
    pretrained: str = ""
    """Its weights: open_clip's tag, or the name of a weights file; empty: whichever made the cache."""
    text_name: str = "clip"
    """clip: the text tower of the same CLIP; t5-small, t5-base: unpaired (Table 2, extra `t5`)."""
    frame_token: str = "cls"
    """cls: the class token, a learnable one per frame; gap: mean of the patch tokens (official Large)."""
    image: str = "cached"
    """What becomes of the image tower (Table 4). finetune: it trains; frozen: it does not, and its tokens may come from
    a cache; cached: only its tokens are there, whatever the paper does with it."""
    text: str = "cached"
    """The same of the text tower (cached also: official Large TAL and COIN, which are given embeddings)."""

    def __post_init__(self) -> None:
        one_of("towers", "text_name", self.text_name, ("clip", "t5-small", "t5-base"))
        one_of("towers", "frame_token", self.frame_token, ("cls", "gap"))
        for key in ("image", "text"):
            one_of("towers", key, getattr(self, key), ("cached", "frozen", "finetune"))
            if getattr(self, key) == "finetune" and not self.name:
                raise ConfigError(f"towers.{key}: finetune, but towers.name names no tower; give one, such as ViT-B-16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig:
    """Which points are positive (official: dataset_utils; spec §2.2)."""

    range_edges: list[float] = field(default_factory=lambda: [0.0, 4.0, 8.0, 16.0, math.inf])
    """Edges of the regression ranges in level-0 steps: level l takes [edge_l, edge_l+1)."""
    radius: float = 3.0
    """Centre sampling: positives lie within radius x 2^l steps of the segment's centre; inf turns it off."""

    def __post_init__(self) -> None:
        check_range_edges(self.range_edges)
        at_least("targets", "radius", self.radius, 0.0)


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
    """Sum of l1, l1_over_union, iou, diou, center_offset_squared, each with an optional factor: `0.8*iou+l1`."""
    saliency_weight: float = 1.0
    """Factor of the saliency loss where there is a saliency head."""

    def __post_init__(self) -> None:
        one_of("loss", "relevance", self.relevance, ("focal", "sigmoid"))
        parse_box_terms(self.box)
        between("loss", "focal_alpha", self.focal_alpha, 0.0, 1.0)
        for key in ("relevance_weight", "focal_gamma", "saliency_weight"):
            at_least("loss", key, getattr(self, key), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """From outputs to predictions (spec §5)."""

    score_threshold: float = 0.001
    """Predictions at or below this score are dropped."""
    nms_sigma: float = 0.3
    """Gaussian Soft-NMS: an overlap of IoU u keeps exp(-u^2 / (2 sigma)) of the score."""
    max_detections: int = 100
    """Predictions kept per query (MR, HD), or per video over all its classes (TAL)."""
    nms_per_class: bool = False
    """TAL: Soft-NMS within each class instead of over all classes; `max_detections` holds per video either way."""
    background_logit: float = 0.0
    """AS: a step whose best logit is at or below this is background."""

    def __post_init__(self) -> None:
        between("decode", "score_threshold", self.score_threshold, 0.0, 1.0)
        at_least("decode", "nms_sigma", self.nms_sigma, 1e-6)
        between("decode", "max_detections", self.max_detections, 1, 100_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What one example holds."""

    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split that selects the best checkpoint; empty or null: none, the last one counts."""
    num_steps: int = 128
    """Level-0 steps T of one example."""
    num_frames: int | None = None
    """Frames per video, evenly from the first to the last, that the cache must hold (paper §4.1.2: 128); null: any."""
    fps: float | None = None
    """Frames per second that the cache must hold (paper §4.1.2: 2 for AS; official 10 or 1); null: any."""
    frame_pick: str = "nearest"
    """MR, TAL, HD: which cached frame a step takes. nearest: in time; floor: frame floor(i (N-1) / (T-1)) of N for step
    i of T, as the official code counts."""
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

    def __post_init__(self) -> None:
        one_of("data", "frame_pick", self.frame_pick, ("nearest", "floor"))
        if self.num_frames is not None and self.fps is not None:
            raise ConfigError(
                f"data.fps: {self.fps} beside data.num_frames {self.num_frames}; a cache has one or the other, set one "
                "of them to null"
            )
        between("data", "num_steps", self.num_steps, 1, 65536)
        between("data", "num_frames", 1 if self.num_frames is None else self.num_frames, 1, 1_000_000)
        between("data", "fps", 1.0 if self.fps is None else self.fps, 1e-6, 1000.0)
        between("data", "max_text_tokens", self.max_text_tokens, 2, MAX_TEXT_TOKENS)
        for key in ("crop_probability", "crop_min_fraction", "coverage"):
            between("data", key, getattr(self, key), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule (spec §4.1)."""

    name: str = "sgd"
    """sgd (momentum 0.9, the official choice) or adamw."""
    lr: float = 0.1
    """Peak learning rate of fusion and heads."""
    tower_lr: float = 0.01
    """Peak learning rate of towers, where they train, and of project_frames and project_texts."""
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
        one_of("optim", "name", self.name, ("sgd", "adamw"))
        one_of("optim", "schedule", self.schedule, ("constant", "cosine", "step"))
        between("optim", "momentum", self.momentum, 0.0, 1.0)
        if self.schedule == "step" and not self.step_epochs:
            raise ConfigError(
                "optim.schedule: step multiplies the rate at optim.step_epochs, which names no epoch; name some, such "
                "as optim.step_epochs=[10,15], or take optim.schedule=constant"
            )
        for key in ("lr", "tower_lr", "weight_decay", "clip_norm"):
            at_least("optim", key, getattr(self, key), 0.0)
        between("optim", "warmup_epochs", self.warmup_epochs, 0.0, MAX_EPOCHS)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop."""

    epochs: float = 20.0
    """Passes over the training split."""
    batch_size: int = 64
    """Videos (TAL, AS) or queries (MR, HD) per step, over all processes."""
    eval_every_epochs: float = 1.0
    """Validation interval."""
    checkpoint_minutes: float = 10.0
    """A checkpoint at least this often, beside those of the validations."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation; 0: off (official)."""
    negatives: str = "batch"
    """MR: batch: every caption against every video of the batch (official); own: its own video only."""
    classes_per_video: int = 0
    """TAL, AS: class names fused with each video per step, its own first, then random others; 0: all (official)."""
    precision: str = "auto"
    """fp32 (with TF32 on CUDA), bf16 (autocast) or auto: bf16 on CUDA devices where it is fast, else fp32. Evaluation
    computes in it too."""
    seed: int = 0
    """Seed of weights, order and sampling."""

    def __post_init__(self) -> None:
        one_of("train", "negatives", self.negatives, ("batch", "own"))
        one_of("train", "precision", self.precision, ("auto", "fp32", "bf16"))
        above_zero("train", "epochs", self.epochs)
        above_zero("train", "eval_every_epochs", self.eval_every_epochs)
        above_zero("train", "checkpoint_minutes", self.checkpoint_minutes)
        between("train", "epochs", self.epochs, 0.0, MAX_EPOCHS)
        between("train", "batch_size", self.batch_size, 1, 1_000_000)
        between("train", "ema_decay", self.ema_decay, 0.0, 0.99999)
        between("train", "classes_per_video", self.classes_per_video, 0, 1_000_000)
        between("train", "seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One training job."""

    name: str = "unnamed"
    """Name of the recipe (the file's stem); `+text_cached` follows where it finetunes a tower and this run does not."""
    task: str = "mr"
    """mr, tal, as or hd."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Fusion, pyramid, heads."""
    towers: TowerConfig = field(default_factory=TowerConfig)
    """Image and text tower."""
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
        one_of("recipe", "task", self.task, ("mr", "tal", "as", "hd"))
        for section in ("model", "loss", "decode", "data", "optim", "train"):  # of targets, infinity is meant
            all_finite(section, getattr(self, section))
        check_variant(self)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML path over its bases, with `key=value` overrides on top.

    The override `base=NAME` puts the recipe on another base than its own. Raises MissingError where a file does not
    exist, ConfigError naming the file and the key that is unknown or impossible.
    """
    path = recipe_path(name_or_path)
    changes = dotted_values(overrides)
    base = changes.pop("base", None)
    layers = [*stated_values(path, base), ("override", changes)]
    merged = {"name": recipe_name(path)} | merged_values(Recipe, layers)
    merged["name"] += "".join(f"+{tower}_{state}" for tower, state in untrained_towers(layers).items())
    return recipe_from_dict(merged, where=str(path))


def untrained_towers(layers: Sequence[tuple[object, dict]]) -> dict[str, str]:
    """Towers that a recipe finetunes and that a file of one's own or an override does not: `{"text": "cached"}`.

    What such a run reaches is not the row of the paper's table; its name says so. A shipped recipe on another (Table 4)
    is a row of its own.
    """
    shipped, found = set(shipped_recipes().values()), {}
    for tower in ("image", "text"):
        finetuned, state = False, ""
        for where, values in layers:
            if tower in values.get("towers", {}):
                state = values["towers"][tower]
                finetuned = state == "finetune" or (finetuned and where not in shipped)
        if finetuned and state != "finetune":
            found[tower] = state
    return found


def recipe_from_dict(values: dict, *, where: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    return built(Recipe, values, where=where)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key stated."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
