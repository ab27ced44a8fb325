"""What a recipe may say: single values, and which variants go together. Every refusal is one ConfigError."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from unloc.errors import ConfigError

BOX_TERMS = ("l1", "l1_over_union", "iou", "diou", "center_offset_squared")
MAX_PARAMETERS = 4_000_000_000  # 16 GB of weights; UnLoc-L has 0.06 billion beside its towers
MAX_BATCH_VALUES = 2**34  # 64 GiB of float32 frame tokens in one batch
MAX_TEXT_TOKENS = 128  # rows of a learned position table beyond the frames; CLIP's own limit is 77


def one_of(section: str, key: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{section}.{key}: got {value!r}, expected one of {', '.join(allowed)}")


def at_least(section: str, key: str, value: float, minimum: float) -> None:
    """Refuse a number below the minimum, and NaN."""
    if not value >= minimum:
        raise ConfigError(f"{section}.{key}: got {value}, expected at least {minimum}")


def between(section: str, key: str, value: float, lowest: float, highest: float) -> None:
    """Refuse a number outside a closed range, and NaN."""
    if not lowest <= value <= highest:
        raise ConfigError(f"{section}.{key}: got {value}, expected {lowest} to {highest}")


def above_zero(section: str, key: str, value: float) -> None:
    """Refuse a number that is not above 0, and NaN."""
    if not value > 0:
        raise ConfigError(f"{section}.{key}: got {value}, expected a number above 0")


def all_finite(section: str, config: Any) -> None:
    """Refuse NaN and infinity among the numbers of a section."""
    for item in fields(config):
        value = getattr(config, item.name)
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"{section}.{item.name}: got {value}, expected a finite number")


def parse_box_terms(expression: str) -> list[tuple[float, str]]:
    """`0.8*iou+l1` as [(0.8, "iou"), (1.0, "l1")]. Raises ConfigError for a term that is not one."""
    terms = []
    for term in expression.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?|\.\d+)\*)?(\w+)", term)
        if match is None or match[2] not in BOX_TERMS:
            raise ConfigError(
                f"loss.box: got {term!r} in {expression!r}, expected a sum of {', '.join(BOX_TERMS)}, "
                "each with an optional factor (0.8*iou+l1)"
            )
        terms.append((float(match[1] or 1.0), match[2]))
    return terms


def check_range_edges(edges: Sequence[float]) -> None:
    """Refuse edges that leave a level no range, or short segments no level."""
    rising = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) < 2 or edges[0] != 0 or not rising:
        raise ConfigError(
            f"targets.range_edges: got {list(edges)}, expected rising edges from 0, such as [0, 4, 8, inf]"
        )


def check_variant(recipe: Any) -> None:
    """Refuse sections of a `Recipe` that are possible each by itself but not together."""
    task, model, sentences = recipe.task, recipe.model, recipe.task in ("mr", "hd")
    linear, without_text, shared = model.head == "linear", model.fusion == "none", model.displacements == "shared"
    sampled, saliency = recipe.train.classes_per_video > 0, model.saliency_head
    of_task = f"the texts of task {task} are sentences"
    refused = {
        f"model.head: linear labels level-0 steps; task {task} finds segments: set it to conv": linear and task != "as",
        f"model.fusion: none has class names for outputs; {of_task}": without_text and sentences,
        f"model.displacements: shared averages over classes; {of_task}": shared and sentences,
        "model.saliency_head: task hd predicts a saliency per clip; set it to true": task == "hd" and not saliency,
        f"model.saliency_head: task {task} has no saliency to learn; set it to false": saliency and not sentences,
        f"train.classes_per_video: {of_task}; set it to 0": sampled and sentences,
        "train.classes_per_video: model.fusion none scores all classes at once; set it to 0": sampled and without_text,
        "train.classes_per_video: model.displacements shared needs all classes; set it to 0": sampled and shared,
    }
    for message, impossible in refused.items():
        if impossible:
            raise ConfigError(message)
    _check_levels(recipe)
    _check_memory(recipe)


def _check_levels(recipe: Any) -> None:
    levels = 1 if recipe.model.pyramid == "none" else recipe.model.num_levels
    ranges = len(recipe.targets.range_edges) - 1
    if recipe.task != "as" and ranges != levels:
        raise ConfigError(
            f"targets.range_edges: {ranges} ranges for {levels} pyramid levels; give one per level "
            "(without a pyramid: [0, inf])"
        )
    coarsest = 2 ** (levels - 1)
    if recipe.data.num_steps <= 0 or recipe.data.num_steps % coarsest:
        raise ConfigError(
            f"data.num_steps: got {recipe.data.num_steps}, expected a positive multiple of {coarsest} for "
            f"{levels} levels"
        )


def _check_memory(recipe: Any) -> None:
    """Refuse sizes that are possible each by itself but not together, before memory is asked for."""
    model, num_steps = recipe.model, recipe.data.num_steps
    layer = 4 * model.width**2 + 2 * model.width * model.mlp_width
    blocks = 2 * (1 if model.share_heads else model.num_levels) * model.num_head_convs * 3 * model.width**2
    parameters = model.num_layers * layer + blocks + (num_steps + MAX_TEXT_TOKENS) * model.width
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"model.width: {model.width}, with mlp_width {model.mlp_width} and num_layers {model.num_layers}, makes "
            f"{parameters / 1e9:.1f} billion parameters, expected at most {MAX_PARAMETERS / 1e9:.0f}; lower one of them"
        )
    batch = recipe.train.batch_size * num_steps * model.width
    if batch > MAX_BATCH_VALUES:
        raise ConfigError(
            f"train.batch_size: {recipe.train.batch_size} examples of data.num_steps {num_steps} need "
            f"{batch * 4 / 2**30:,.0f} GiB for their frames alone, expected at most {MAX_BATCH_VALUES * 4 // 2**30}; "
            "lower one of them"
        )
