"""What a recipe may say: frozen dataclasses with the paper's values as defaults, each field with its allowed values.

Sources: UnLoc §3-4 and the official configurations (where they differ the field says so). Files: `unloc.recipes`.
"""

import itertools
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from unloc.errors import ConfigError
from unloc.plugins import added_names

BOX_TERMS = ("l1", "l1_over_union", "iou", "diou", "center_offset_squared")
MAX_EPOCHS = 1_000_000.0
MAX_BILLIONS = 4  # of parameters; UnLoc-L has 0.06 without its towers
MAX_BATCH_GIB = 64  # of float32 frame tokens
MAX_TEXT_TOKENS = 128  # rows of a learned position table beyond the frames; CLIP's own limit is 77
TASK_NAMES = ("mr", "tal", "as", "hd", "cls")
SEVERAL = "several"  # the task of a recipe that has `tasks`
_OF_HEADS = "num_levels head num_head_convs share_heads displacements class_bias displacement_bias saliency_head"
OF_A_TASK: dict[str, tuple[str, ...]] = {  # what each of several tasks has of its own; (): the whole section
    **{section: () for section in ("augment", "targets", "loss", "decode", "data")},
    "model": tuple(_OF_HEADS.split()),
    "train": ("batch_size", "negatives", "classes_per_video"),
}


def one_of(*choices: str, added: str = "") -> Any:
    """A field that is one of these words, the first by default, or what other packages `added` of that kind."""

    def allows(value: str) -> bool:
        return value in choices or (added != "" and value in added_names(added))

    rule = {"allows": allows, "expected": f"one of {', '.join(choices)}", "added": added}
    return field(default=choices[0], metadata=rule)


def number(default: float | None, low: float, high: float = math.inf, *, finite: bool = True) -> Any:
    """A field from `low` to `high`, or None where that is the default."""
    expected = f"{low} to {high}" if high < math.inf else f"at least {low}"
    rule = {"allows": lambda value: value is None or low <= value <= high, "expected": expected, "finite": finite}
    return field(default=default, metadata=rule)


class Section:
    """A part of a recipe; raises ConfigError for a field that its declaration does not allow, or that is not finite."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            value, rule = getattr(self, item.name), item.metadata
            numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
            expected = None if rule.get("allows", lambda value: True)(value) else rule["expected"]
            if expected and rule.get("added"):
                expected += f", or of other packages: {', '.join(added_names(rule['added'])) or 'none is installed'}"
            if rule.get("finite", True) and not all(map(math.isfinite, numbers)):
                expected = expected or "a finite number"
            if expected:
                section = type(self).__name__.removesuffix("Config").lower()
                raise ConfigError(f"{section}.{item.name}: got {value!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Section):
    """Fusion, pyramid and heads (UnLoc §3.2-3.3; official widths)."""

    width: int = number(512, 1, 16384)
    """Channels of fusion, pyramid and heads (Base 512, Large 768)."""
    num_heads: int = number(8, 1, 1024)
    """Attention heads (Base 8, Large 12)."""
    mlp_width: int = number(2048, 1, 65536)
    """Hidden channels of the fusion MLPs (Base 2048, Large 3072)."""
    num_layers: int = number(6, 1, 128)
    fusion: str = one_of("mid", "late", "none")
    """mid: the paper's; late: cosine of frame and text; none: class logits without text (Table 3)."""
    text_tokens: str = one_of("all", "eos")
    """all: every text token with its mask (paper's best); eos: one token (the official configurations)."""
    positions: str = one_of("sinusoidal", "learned", "none")
    """Over frames, then text."""
    pyramid: str = one_of("simple", "fpn", "none")
    """simple (ViTDet), fpn (max-pool inside the encoder, top-down sum) or none (Table 1)."""
    num_levels: int = number(4, 1, 12)
    """Pyramid levels; level l has stride 2^l. Ignored by pyramid none."""
    head: str = one_of("conv", "linear", added="heads")
    """conv: conv blocks per point; linear: one linear layer (official AS head); or a head of another package."""
    num_head_convs: int = number(3, 1, 4)
    """Conv blocks of a head, 1-4 (paper 3; official TAL 4)."""
    share_heads: bool = True
    """One head for all levels, with a scale and shift per level, or a head per level."""
    displacements: str = one_of("per_text", "shared")
    """per_text: a pair per class or caption (paper §3.4); shared: one for all classes, from averaged features, which
    learns the shortest segment at each point. Late fusion always shares them."""
    project_frames: bool = False
    """A linear layer over frame tokens of any width (official: starting as CLIP's own projection, over tokens from
    before it); false: only where they are not as wide as the fusion."""
    project_texts: bool = False
    """The same for text tokens."""
    class_bias: float = 0.0
    """Initial bias of the relevance logit (official: TAL -5, MR 0, COIN -6.6)."""
    displacement_bias: float = 2.0
    """Initial bias of the displacements (official: 2, Charades-STA 0)."""
    saliency_head: bool = False
    """A score per level-0 step in addition to the segments (HD)."""
    dropout: float = number(0.0, 0.0, 0.99)
    """Dropout of the fusion transformer (official: 0)."""
    max_texts_in_flight: int = number(0, 0, 1_000_000)
    """Texts fused at once, in chunks with activation checkpointing; 0: all at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowersConfig(Section):
    """Image and text tower (UnLoc §3.1, Tables 2 and 4)."""

    name: str = ""
    """open_clip's name, such as ViT-B-16 or ViT-L-14; empty: the one that made the cache."""
    pretrained: str = ""
    """Its weights: open_clip's tag, or the name of a weights file; empty: those that made the cache."""
    text_name: str = one_of("clip", "t5-small", "t5-base")
    """clip: the text tower of the same CLIP; t5-small, t5-base: unpaired (Table 2, extra `t5`)."""
    frame_token: str = one_of("cls", "gap")
    """cls: the class token, a learnable one per frame; gap: mean of the patch tokens (official Large)."""
    image: str = one_of("cached", "frozen", "finetune")
    """How the image tower is used (Table 4). finetune: it trains; frozen: it does not, its tokens come from a cache;
    cached: the same, whatever the paper does."""
    text: str = one_of("cached", "frozen", "finetune")
    """The same for the text tower, which is in the model where it trains (cached also: official Large TAL and COIN,
    which read embeddings)."""
    frame_embeddings: bool = False
    """A trained image tower has a class embedding per frame index (official); its tokens then need as many frames."""
    train_last_blocks: int = number(0, 0, 1000)
    """Blocks of a trained image tower that train, counted from the last; 0: the whole tower."""
    frame_chunk: int = number(0, 0, 1_000_000)
    """Frames that pass a trained image tower at once; each chunk passes again for its gradients, which are exact
    (`unloc.training.objective`), in the memory of one chunk. 0: all frames of a batch at once."""
    replay_share: float = number(1.0, 1e-6, 1.0)
    """Share of the chunks that pass a second time; below 1 gradients are estimates, right on average."""
    checkpoint_blocks: bool = False
    """Blocks of a trained image tower are computed again in the backward pass instead of kept in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig(Section):
    """What training on frames draws for each clip, besides a random crop (official; the defaults are those of MR)."""

    flip: float = number(0.5, 0.0, 1.0)
    """Probability of a mirror image."""
    flip_directed: bool = False
    """Also mirror videos whose texts bear a direction (left, right, clockwise), as the official code does."""
    scale_jitter: bool = False
    """Height and width times 0.9 to 1.33 each (official for TAL and AS)."""
    randaugment_layers: int = number(0, 0, 10)
    """Operations of RandAugment, of magnitude 10 (official for TAL and AS: 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetsConfig(Section):
    """Which points are positive (official: dataset_utils)."""

    range_edges: list[float] = field(default_factory=[0.0, 4.0, 8.0, 16.0, math.inf].copy, metadata={"finite": False})
    """Edges of the regression ranges in level-0 steps: level l takes [edge_l, edge_l+1)."""
    radius: float = number(3.0, 0.0, finite=False)
    """Centre sampling: positives lie within radius x 2^l steps of the segment's centre; inf turns it off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(Section):
    """Losses (UnLoc §3.3)."""

    relevance: str = one_of("focal", "sigmoid")
    relevance_weight: float = number(10.0, 0.0)
    focal_alpha: float = number(0.25, 0.0, 1.0)
    """Focal weight of positives."""
    focal_gamma: float = number(2.0, 0.0)
    box: str = "iou"
    """Sum of l1, l1_over_union, iou, diou, center_offset_squared, each with an optional factor: `0.8*iou+l1`."""
    saliency_weight: float = number(1.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig(Section):
    """From outputs to predictions."""

    score_threshold: float = number(0.001, 0.0, 1.0)
    """Predictions at or below this score are dropped."""
    nms_sigma: float = number(0.3, 1e-6)
    """Gaussian Soft-NMS: an overlap of IoU u keeps exp(-u^2 / (2 sigma)) of the score."""
    max_detections: int = number(100, 1, 100_000)
    """Predictions kept per query (MR, HD), or per video over all its classes (TAL, CLS)."""
    nms_per_class: bool = False
    """TAL: Soft-NMS within each class instead of over all classes; `max_detections` holds per video either way."""
    background_logit: float = 0.0
    """AS: a step whose best logit is at or below this is background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """What one example holds."""

    train_split: str = "train"
    val_split: str = "val"
    """Split that selects the best checkpoint; empty or null: none, the last one is used."""
    num_steps: int = number(128, 1, 65536)
    """Level-0 steps T of one example."""
    num_frames: int | None = number(None, 1, 1_000_000)
    """Frames per video, evenly from the first to the last, that the cache must hold (paper §4.1.2: 128); null: any."""
    fps: float | None = number(None, 1e-6, 1000.0)
    """Frames per second that the cache must hold (paper §4.1.2: 2 for AS; official 10 or 1); null: any."""
    frame_pick: str = one_of("nearest", "floor")
    """MR, TAL, HD, CLS: frame of step i of T. nearest: in time; floor: frame floor(i (N-1) / (T-1)) of N (official)."""
    max_text_tokens: int = number(32, 2, MAX_TEXT_TOKENS)
    """Text tokens kept (EOS survives truncation)."""
    prompts: bool = False
    """Class names through the 28 CLIP Kinetics prompts: a random one in training, see prompt_ensembling."""
    prompt_ensembling: bool = True
    """Evaluation with prompts: outputs averaged over all 28; false: the first prompt alone (Tables 6 and 7)."""
    jitter: bool = False
    """Training: frames at random times within their step, instead of the nearest."""
    crop_probability: float = number(0.0, 0.0, 1.0)
    """Training: probability of cropping the video to a random part that cuts no annotated segment."""
    crop_min_fraction: float = number(0.5, 0.0, 1.0)
    """Training: smallest part of the video that a crop keeps."""
    coverage: float = number(1.0, 0.0, 1.0)
    """Smallest share of a split's videos that must be in the cache; missing videos are reported either way."""
    null_queries: bool = False
    """MR, HD: training learns to find nothing for queries without segments, which are nowhere in their videos; false:
    their annotations are hidden, and they are not used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(Section):
    """Optimiser and schedule (UnLoc §4.1.2)."""

    name: str = one_of("sgd", "adamw")
    """sgd (momentum 0.9, the official choice) or adamw."""
    lr: float = number(0.1, 0.0)
    """Peak learning rate of fusion and heads."""
    tower_lr: float = number(0.01, 0.0)
    """Peak learning rate of towers, where they train, and of project_frames and project_texts."""
    momentum: float = number(0.9, 0.0, 1.0)
    weight_decay: float = number(0.0, 0.0)
    """Decoupled for AdamW, L2 for SGD; never on biases and norms."""
    schedule: str = one_of("constant", "cosine", "step")
    """After warm-up: constant, cosine (to 0) or step (x0.1 at each of step_epochs)."""
    step_epochs: list[float] = field(default_factory=list)
    """Epochs at which schedule step multiplies the rate by 0.1."""
    warmup_epochs: float = number(2.5, 0.0, MAX_EPOCHS)
    """Linear warm-up from 0."""
    clip_norm: float = number(1.0, 0.0)
    """Global-norm gradient clipping; 0: off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Section):
    """The loop."""

    epochs: float = number(20.0, 1e-9, MAX_EPOCHS)
    batch_size: int = number(64, 1, 1_000_000)
    """Videos (TAL, AS, CLS) or queries (MR, HD) per step, over all processes."""
    eval_every_epochs: float = number(1.0, 1e-9)
    accumulate: int = number(1, 1, 1_000_000)
    """Parts in which a batch passes, each with the memory of one; loss and gradients stay those of the whole batch."""
    log_every: int = number(0, 0, 1_000_000)
    """Steps from one logged row to the next; 0: 1 on a CPU, 10 on a GPU, which runs ahead of what is read."""
    checkpoint_minutes: float = number(10.0, 1e-9)
    """A checkpoint at least this often, in addition to one per validation."""
    ema_decay: float = number(0.0, 0.0, 0.99999)
    """Exponential moving average of the weights, used for evaluation; 0: off (official)."""
    negatives: str = one_of("batch", "own")
    """MR: batch: every caption against every video of the batch (official); own: its own video only."""
    classes_per_video: int = number(0, 0, 1_000_000)
    """TAL, AS, CLS: class names fused with each video per step, its own first, then random ones; 0: all (official)."""
    compile: str = one_of("auto", "on", "off")
    """torch.compile of fusion, pyramid and heads: a minute at the start, then faster steps. auto: on a GPU, for runs of
    at least 1,000 steps; never on a CPU, where it does not pay."""
    precision: str = one_of("auto", "fp32", "bf16")
    """fp32 (with TF32 on CUDA), bf16 (autocast) or auto: bf16 on CUDA devices where it is fast. For evaluation too."""
    seed: int = number(0, 0, 2**32 - 1)
    """Seed of weights, order and sampling."""

    def __post_init__(self) -> None:
        """YAML reads a bare on and off as true and false."""
        object.__setattr__(self, "compile", {"True": "on", "False": "off"}.get(self.compile, self.compile))
        Section.__post_init__(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Section):
    """One training job."""

    name: str = "unnamed"
    """Shipped name or the file's stem; ends in `+text_cached` where the recipe trains a tower and the run does not."""
    task: str = one_of(*TASK_NAMES, SEVERAL)
    model: ModelConfig = field(default_factory=ModelConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tasks: dict[str, Any] = field(default_factory=dict)
    """Several tasks in one model: of each what differs from this recipe (`OF_A_TASK`), and a `weight`: its share of the
    steps (none has one: as many as it has batches). A file may give each a `base` for what it does not state."""

    @property
    def live_towers(self) -> tuple[str, ...]:
        """Towers that are part of the model when it trains on a cache: the text tower, where it trains."""
        return ("text",) if self.towers.text == "finetune" else ()

    def __post_init__(self) -> None:
        """Raise ConfigError where fields are valid by themselves but not together."""
        Section.__post_init__(self)
        if (self.task == SEVERAL) != bool(self.tasks):
            tasks = ", ".join(self.tasks) or "none"
            raise ConfigError(f"task: got {self.task}, and tasks {tasks}; state one of the two")
        if self.tasks:
            return  # the recipe of each is checked by itself (`recipes.task_recipes`)
        parse_box_terms(self.loss.box)
        task, model, data, optim = self.task, self.model, self.data, self.optim
        width, layers, edges, steps = model.width, model.num_layers, self.targets.range_edges, data.num_steps
        rising = len(edges) > 1 and edges[0] == 0 and all(low < high for low, high in itertools.pairwise(edges))
        levels = 1 if model.pyramid == "none" else model.num_levels
        localizes, sentences = task not in ("as", "cls"), task in ("mr", "hd")
        of_task = f"the texts of task {task} are sentences"
        linear, without_text, shared = model.head == "linear", model.fusion == "none", model.displacements == "shared"
        sampled, saliency = self.train.classes_per_video > 0, model.saliency_head
        blocks = 2 * (1 if model.share_heads else model.num_levels) * model.num_head_convs * 3 * width**2
        fusion = layers * (4 * width**2 + 2 * width * model.mlp_width) + (steps + MAX_TEXT_TOKENS) * width
        size, parts = self.train.batch_size, self.train.accumulate
        billions, gib = (fusion + blocks) / 1e9, size * steps * width * 4 / 2**30
        too_large, multiple = billions > MAX_BILLIONS, 2 ** (levels - 1)
        sizes = f"{width}, mlp_width {model.mlp_width} and num_layers {layers}"
        no_tower = "finetune, but towers.name names no tower; give one, such as ViT-B-16"
        trains_image, trains_text = self.towers.image == "finetune", self.towers.text == "finetune"
        too_few = model.pyramid == "fpn" and model.num_levels > layers
        indivisible, uneven = width % model.num_heads or width % 2, steps % multiple
        unchunked = self.towers.replay_share < 1 and not self.towers.frame_chunk
        unstated = optim.schedule == "step" and not optim.step_epochs
        for message, impossible in {
            f"model.num_levels: {model.num_levels} levels need as many layers for pyramid fpn, got {layers}": too_few,
            f"model.width: {width} is not a multiple of model.num_heads {model.num_heads} and of 2": indivisible,
            f"towers.image: {no_tower}": trains_image and not self.towers.name,
            f"towers.text: {no_tower}": trains_text and not self.towers.name,
            "towers.text: finetune, but model.fusion none has no text; set it to frozen": trains_text and without_text,
            "towers.replay_share: below 1 needs chunks; set towers.frame_chunk, such as 32": unchunked,
            f"targets.range_edges: got {edges}, expected rising edges from 0, such as [0, 4, 8, inf]": not rising,
            f"data.fps: got {data.fps}, and data.num_frames {data.num_frames}; a cache has one of them: set the other "
            "to null": data.fps is not None and data.num_frames is not None,
            "optim.schedule: step needs epochs, such as optim.step_epochs=[10,15]; or set it to constant": unstated,
            f"model.head: linear labels level-0 steps; task {task} finds segments: take conv": linear and localizes,
            f"model.fusion: none has one output per class name; {of_task}": without_text and sentences,
            f"model.displacements: shared averages over classes; {of_task}": shared and sentences,
            "model.saliency_head: task hd predicts a saliency per clip; set it to true": task == "hd" and not saliency,
            f"model.saliency_head: task {task} has no saliency to learn; set it to false": saliency and not sentences,
            f"train.classes_per_video: {of_task}; set it to 0": sampled and sentences,
            f"data.null_queries: task {task} has no queries; set it to false": data.null_queries and not sentences,
            "train.classes_per_video: model.fusion none scores all classes; set it to 0": sampled and without_text,
            "train.classes_per_video: model.displacements shared needs all classes; set it to 0": sampled and shared,
            f"targets.range_edges: {len(edges) - 1} ranges for {levels} pyramid levels; give one per level (without a "
            "pyramid: [0, inf])": localizes and len(edges) - 1 != levels,
            f"data.num_steps: got {steps}, expected a positive multiple of {multiple} for {levels} levels": uneven,
            f"model.width: {sizes} make {billions:.1f} billion parameters, expected at most {MAX_BILLIONS}": too_large,
            f"train.accumulate: {parts} parts of a batch of {size}; give as many or fewer": parts > size,
            f"train.batch_size: {size} examples of {steps} steps take {gib:,.0f} GiB for frames, expected at most "
            f"{MAX_BATCH_GIB}": gib > MAX_BATCH_GIB,
        }.items():
            if impossible:
                raise ConfigError(message)


def parse_box_terms(expression: str) -> list[tuple[float, str]]:
    """`0.8*iou+l1` as [(0.8, "iou"), (1.0, "l1")]. Raises ConfigError for an unknown term."""
    terms = []
    for term in expression.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?|\.\d+)\*)?(\w+)", term)
        expected = f"a sum of {', '.join(BOX_TERMS)}, each with an optional factor (0.8*iou+l1)"
        if match is None or match[2] not in BOX_TERMS:
            raise ConfigError(f"loss.box: got {term!r} in {expression!r}, expected {expected}")
        terms.append((float(match[1] or 1.0), match[2]))
    return terms
