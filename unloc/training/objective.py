"""The loss of a batch: relevance, displacements and saliency with the official normalisers (UnLoc §3.5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unloc.config import LossConfig, Recipe
from unloc.examples.batches import Batch
from unloc.model.unloc import Outputs
from unloc.ops.losses import box_loss, focal_loss, sum_over
from unloc.ops.points import Targets, localization_targets, make_points, shared_displacements
from unloc.tasks import task_named
from unloc.training.distributed import gathered_texts, process_mean


def compute_losses(model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Forward pass of one batch: its `loss`, and the weighted parts that it is the sum of.

    Videos are paired with all classes, with the captions of the batch (of all processes), or each with its own text.
    """
    task, config = task_named(recipe.task), recipe.loss
    has_classes = task.text_kind == "class"
    own_only = recipe.train.classes_per_video > 0
    if not has_classes:
        own_only = recipe.task != "mr" or recipe.train.negatives == "own"
    texts = gathered_texts(batch, own_only=own_only or has_classes)
    frame_mask, pairing = batch.model_masks[0], "own" if own_only else "all"
    frames = batch.frames if batch.frames.ndim == 3 else model.encode(batch.frames)
    if batch.rows_per_video > 1:
        frames = frames.repeat_interleave(batch.rows_per_video, dim=0)
    outputs = model(frames, frame_mask, texts.tokens, texts.model_mask, pairing=pairing).at_least_float32()
    if task.localizes:
        num_levels = 1 if recipe.model.pyramid == "none" else recipe.model.num_levels
        points = make_points(batch.frames.shape[1], num_levels, batch.frames.device)
        text = torch.zeros_like(batch.segment_text) if own_only else batch.segment_text + texts.first_own
        text, num_texts = text.where(batch.segment_text >= 0, -1), 1 if own_only else len(texts.tokens)
        edges, radius = recipe.targets.range_edges, recipe.targets.radius
        targets = localization_targets(batch.segments_steps, text, num_texts, points, edges, radius)
        weights = point_mask(batch.frame_mask, num_levels)[:, None]
        if has_classes:  # summed over classes, each point counted once
            normalizer = weights.sum() / batch.rows_per_video
            if recipe.model.displacements == "shared" or recipe.model.fusion == "late":
                targets = shared_displacements(targets, batch.rows_per_video)
        elif own_only:
            weights = weights & texts.mask.any(dim=1)[:, None, None]
            normalizer = weights.sum()
        else:
            weights = caption_weights(point_mask(texts.owner_mask, num_levels), texts.mask.any(dim=1))
            normalizer = weights.sum() * len(batch.frames)
        parts = pair_losses(outputs, targets, weights, normalizer, config)
    else:
        labels, rows = batch.step_labels, batch.rows_per_video
        parts = {"relevance": segmentation_loss(outputs.relevance, labels, batch.frame_mask, rows, config)}
    if outputs.saliency is not None:
        parts["saliency"] = config.saliency_weight * saliency_loss(outputs.saliency, batch, texts.first_own)
    return {"loss": sum(parts.values()), **parts}


def caption_weights(owner_valid: Tensor, text_valid: Tensor) -> Tensor:
    """(1, C, P) which pairs of a video with a caption count, from the points (V, P) of the videos that the captions
    (C, each video's one after another) come from: officially the caption owner's frame mask goes with every video.
    """
    owner = torch.arange(len(text_valid), device=text_valid.device) * len(owner_valid) // len(text_valid)
    return (owner_valid[owner] & text_valid[:, None])[None]


def pair_losses(
    outputs: Outputs, targets: Targets, weights: Tensor, normalizer: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """Relevance over all pairs and points that `weights` (broadcast to (B, C, P)) count, divided by the normaliser;
    displacements averaged over those that are positive.
    """
    losses = relevance_losses(outputs.relevance, targets.relevance, config)
    relevance = config.relevance_weight * sum_over(losses * weights, process_mean(normalizer))
    positive = targets.relevance & weights
    boxes = box_loss(outputs.displacements[positive], targets.displacements[positive], config.box)
    return {"relevance": relevance, "box": sum_over(boxes, process_mean(positive.sum()))}


def point_mask(frame_mask: Tensor, num_levels: int) -> Tensor:
    """(B, P) validity of every point: that of its level-0 step."""
    return torch.cat([frame_mask[:, :: 2**level] for level in range(num_levels)], dim=1)


def relevance_losses(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Elementwise relevance loss that the recipe names, of boolean labels."""
    labels = labels.to(logits.dtype)
    if config.relevance == "focal":
        return focal_loss(logits, labels, config.focal_alpha, config.focal_gamma)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def segmentation_loss(
    logits: Tensor, labels: Tensor, frame_mask: Tensor, rows_per_video: int, config: LossConfig
) -> Tensor:
    """Of (B, C, T) logits: summed over classes, divided by the number of valid steps."""
    losses = relevance_losses(logits, labels, config)
    return sum_over(losses * frame_mask[:, None], process_mean(frame_mask.sum() / rows_per_video))


def saliency_loss(logits: Tensor, batch: Batch, first_own: int = 0) -> Tensor:
    """Cross-entropy with the raters' mean (0-1) as a soft label, mean over valid steps of own queries with ratings."""
    if logits.shape[1] > 1:
        own = torch.arange(len(logits), device=logits.device)
        logits = logits[own, first_own + own][:, None]
    valid = (batch.frame_mask & batch.is_rated[:, None])[:, None]
    labels = batch.saliency[:, None].to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return sum_over(losses * valid, process_mean(valid.sum()))
