"""The objective of a batch: relevance, displacements and saliency losses with the official normalisers (spec §3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unloc.config import LossConfig, Recipe
from unloc.data.collate import Batch
from unloc.model.unloc import Outputs
from unloc.ops.losses import box_loss, focal_loss, positive_mean, sigmoid_loss, weighted_sum_over
from unloc.ops.points import Points, make_points
from unloc.ops.targets import Targets, localization_targets
from unloc.tasks import task_named


@dataclass(frozen=True)
class Losses:
    """The total and its weighted parts."""

    total: Tensor
    parts: dict[str, Tensor]


def pairing_of(recipe: Recipe) -> str:
    """How training pairs texts with videos: classes and in-batch negatives with all, otherwise each with its own."""
    task = task_named(recipe.task)
    if task.text_kind == "class":
        return "own" if recipe.train.classes_per_video else "all"
    return "all" if recipe.task == "mr" and recipe.train.negatives == "batch" else "own"


def compute_losses(model: nn.Module, batch: Batch, recipe: Recipe) -> Losses:
    """Forward pass and losses of one batch."""
    pairing = pairing_of(recipe)
    outputs = model(batch.frames, batch.frame_mask, batch.texts, batch.text_mask, pairing=pairing)
    if not task_named(recipe.task).localizes:
        parts = {"relevance": segmentation_loss(outputs, batch, recipe.loss)}
    else:
        parts = localization_losses(outputs, batch, recipe)
    if outputs.saliency is not None and batch.saliency is not None:
        parts["saliency"] = recipe.loss.saliency_weight * saliency_loss(outputs, batch)
    return Losses(sum(parts.values()), parts)


def localization_losses(outputs: Outputs, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Relevance over every pair and point, displacements over positive points (spec §3.1-3.4)."""
    num_levels = 1 if recipe.model.pyramid == "none" else recipe.model.num_levels
    points = make_points(batch.frames.shape[1], num_levels).to(batch.frames.device)
    own_only = outputs.relevance.shape[1] == 1 and len(batch.texts) != 1
    targets = batch_targets(batch, points, recipe, own_only=own_only)
    weights = point_mask(batch.frame_mask, num_levels)[:, None].to(outputs.relevance.dtype)
    losses = relevance_losses(outputs.relevance, targets.relevance.to(weights.dtype), recipe.loss)
    # Classes are summed over positions counted once; a caption is a text of its own: every pair counts (§3.1, 3.4).
    per_class = task_named(recipe.task).text_kind == "class"
    normalizer = weights.sum() / batch.rows_per_video if per_class else weights.sum() * outputs.relevance.shape[1]
    relevance = recipe.loss.relevance_weight * weighted_sum_over(losses, weights, normalizer)
    boxes = box_loss(outputs.displacements, targets.displacements, recipe.loss.box)
    return {"relevance": relevance, "box": positive_mean(boxes, targets.relevance, weights)}


def batch_targets(batch: Batch, points: Points, recipe: Recipe, *, own_only: bool) -> Targets:
    """Targets of the pairs that the model was asked for."""
    text = batch.segment_text
    if own_only:  # one text per video: index 0
        text = torch.where(text >= 0, 0, -1)
    num_texts = 1 if own_only else len(batch.texts)
    edges, radius = recipe.targets.range_edges, recipe.targets.radius
    return localization_targets(batch.segments_steps, text, num_texts, points, edges, radius)


def point_mask(frame_mask: Tensor, num_levels: int) -> Tensor:
    """(B, P) validity of every point: that of the level-0 step it stands on."""
    return torch.cat([frame_mask[:, :: 2**level] for level in range(num_levels)], dim=1)


def relevance_losses(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Elementwise relevance loss that the recipe names."""
    if config.relevance == "focal":
        return focal_loss(logits, labels, config.focal_alpha, config.focal_gamma)
    return sigmoid_loss(logits, labels)


def segmentation_loss(outputs: Outputs, batch: Batch, config: LossConfig) -> Tensor:
    """Summed over classes, divided by the number of valid steps (spec §3.3). Background is all zeros."""
    if batch.step_labels is not None:
        labels = batch.step_labels[:, None].to(outputs.relevance.dtype)
    else:
        classes = torch.arange(outputs.relevance.shape[1], device=batch.frames.device)
        labels = (batch.step_classes[:, None] == classes[None, :, None]).to(outputs.relevance.dtype)
    weights = batch.frame_mask[:, None].to(labels.dtype)
    losses = relevance_losses(outputs.relevance, labels, config)
    return weighted_sum_over(losses, weights, weights.sum() / batch.rows_per_video)


def saliency_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Cross-entropy with the raters' mean (0-1) as a soft label, mean over valid steps of each video's own query."""
    logits = outputs.saliency
    if logits.shape[1] > 1:
        own = torch.arange(len(logits), device=logits.device)
        logits = logits[own, own][:, None]
    weights = batch.frame_mask[:, None].to(logits.dtype)
    losses = sigmoid_loss(logits, batch.saliency[:, None].to(logits.dtype))
    return weighted_sum_over(losses, weights, weights.sum())
