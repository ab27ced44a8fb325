"""The loss of a batch: relevance, displacements and saliency with the official normalisers (UnLoc §3.5).

A batch may pass in parts (gradient accumulation). As between processes, each part fuses its own videos with the texts
of the whole batch and divides by the whole batch's normalisers, so that losses and gradients of the parts add up.
"""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unloc.config import Recipe
from unloc.examples.batches import Batch
from unloc.ops.losses import box_loss, focal_loss, sum_over
from unloc.ops.points import localization_targets, make_points, shared_displacements
from unloc.tasks import task_named
from unloc.training.distributed import Texts, gathered_texts, process_mean


@dataclass(frozen=True)
class Part:
    """Some videos of a batch, the texts they meet, and their labels at P points: all levels; AS: T steps; CLS: one."""

    batch: Batch
    texts: Texts
    relevance: Tensor  # (B, C, P) bool
    weights: Tensor  # bool, broadcasts to (B, C, P): which of these count
    displacements: Tensor | None  # (B, C, P, 2) in strides; None for AS and CLS
    positives: Tensor  # (levels,) positive points that count
    normalizers: dict[str, Tensor]  # by loss: what it is divided by, of the whole batch


def compute_losses(model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Forward pass of one batch: its `loss`, and the weighted parts that it is the sum of."""
    (part,) = split_batch(batch, recipe)
    return part_losses(model, part, recipe)


def split_batch(batch: Batch, recipe: Recipe, num_parts: int = 1) -> list[Part]:
    """At most so many parts of nearly equal size, whose losses add up to those of the batch."""
    is_query, has_own = task_named(recipe.task).text_kind == "query", has_own_texts(recipe)
    texts = gathered_texts(batch, own_only=has_own or not is_query)
    count = len(batch.frames)
    edges = [count * part // min(num_parts, count) for part in range(min(num_parts, count) + 1)]
    parts = []
    for first, end in itertools.pairwise(edges):
        videos = batch if len(edges) == 2 else batch.videos(first, end, own_texts=has_own or is_query)
        met = gathered_texts(videos, own_only=True) if has_own else texts
        if is_query and not has_own:
            met = replace(texts, first_own=texts.first_own + first)
        parts.append(labelled_part(videos, met, recipe))
    names = parts[0].normalizers
    totals = process_mean(torch.stack([sum(part.normalizers[name] for part in parts).double() for name in names]))
    normalizers = dict(zip(names, totals.float(), strict=True))
    return [replace(part, normalizers=normalizers) for part in parts]


def has_own_texts(recipe: Recipe) -> bool:
    """Whether each row of a batch meets its own text alone, instead of all classes or captions (of all processes)."""
    if task_named(recipe.task).text_kind == "class":
        return recipe.train.classes_per_video > 0
    return recipe.task != "mr" or recipe.train.negatives == "own"


def labelled_part(batch: Batch, texts: Texts, recipe: Recipe) -> Part:
    """A batch or some videos of one, with its labels and its own normalisers."""
    task, rows, has_own = task_named(recipe.task), batch.rows_per_video, has_own_texts(recipe)
    displacements, normalizers = None, {}
    if task.localizes:
        num_levels = 1 if recipe.model.pyramid == "none" else recipe.model.num_levels
        points = make_points(batch.frames.shape[1], num_levels, batch.frames.device)
        text = torch.zeros_like(batch.segment_text) if has_own else batch.segment_text + texts.first_own
        text, num_texts = text.where(batch.segment_text >= 0, -1), 1 if has_own else len(texts.tokens)
        edges, radius = recipe.targets.range_edges, recipe.targets.radius
        targets = localization_targets(batch.segments_steps, text, num_texts, points, edges, radius)
        weights = point_mask(batch.frame_mask, num_levels)[:, None]
        if task.text_kind == "class":  # summed over classes, each point counted once
            normalizer = weights.sum() / rows
            if recipe.model.displacements == "shared" or recipe.model.fusion == "late":
                targets = shared_displacements(targets, rows)
        elif has_own:
            weights = weights & texts.mask.any(dim=1)[:, None, None]
            normalizer = weights.sum()
        else:  # officially the frame mask of the video that a caption comes from goes with every video
            owners, is_caption = point_mask(texts.owner_mask, num_levels), texts.mask.any(dim=1)
            owner = torch.arange(num_texts, device=is_caption.device) * len(owners) // num_texts  # each has as many
            weights = (owners[owner] & is_caption[:, None])[None]
            normalizer = weights.sum() * len(batch.frames)
        relevance, displacements = targets.relevance, targets.displacements
        sizes = [len(batch.frame_mask[0, :: 2**level]) for level in range(num_levels)]
        normalizers["box"] = (relevance & weights).sum()
    elif task.labelled == "videos":  # summed over classes, averaged over videos
        classes = batch.segment_text.clamp(max=0) if has_own else batch.segment_text
        texts_index = torch.arange(1 if has_own else len(texts.tokens), device=classes.device)
        relevance = (classes[..., None] == texts_index).any(1)[..., None]
        weights, sizes = torch.ones_like(relevance[:, :1]), [1]
        normalizer = weights.sum() / rows
    else:  # summed over classes, averaged over steps
        relevance, weights, sizes = batch.step_labels, batch.frame_mask[:, None], [batch.frame_mask.shape[1]]
        normalizer = batch.frame_mask.sum() / rows
    normalizers["relevance"] = normalizer
    if task.text_kind == "query" and batch.is_rated is not None:
        normalizers["saliency"] = rated_steps(batch).sum()
    positives = torch.stack([level.sum() for level in (relevance & weights).sum((0, 1)).split(sizes)])
    return Part(batch, texts, relevance, weights, displacements, positives, normalizers)


def part_losses(model: nn.Module, part: Part, recipe: Recipe) -> dict[str, Tensor]:
    """`compute_losses` of a part: what it adds to those of the whole batch. Nothing here waits for the device: points
    that do not count are masked, not selected.
    """
    batch, texts, normalizers, config = part.batch, part.texts, part.normalizers, recipe.loss
    frames = batch.frames if batch.frames.ndim == 3 else model.image_tower(batch.frames)
    if batch.rows_per_video > 1:
        frames = frames.repeat_interleave(batch.rows_per_video, dim=0)
    pairing = "own" if has_own_texts(recipe) else "all"
    outputs = model(frames, batch.model_masks[0], texts.tokens, texts.model_mask, pairing=pairing).at_least_float32()
    logits = outputs.relevance
    if task_named(recipe.task).labelled == "videos":
        logits = outputs.video_logits(batch.frame_mask)[..., None]
    positive = part.relevance.to(logits.dtype)
    if config.relevance == "focal":
        losses = focal_loss(logits, positive, config.focal_alpha, config.focal_gamma)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    weight = 1.0 if part.displacements is None else config.relevance_weight
    parts = {"relevance": weight * sum_over(losses * part.weights, normalizers["relevance"])}
    if part.displacements is not None:
        boxes = box_loss(outputs.displacements, part.displacements, config.box)
        parts["box"] = sum_over(boxes.where(part.relevance & part.weights, 0.0), normalizers["box"])
    if outputs.saliency is not None:
        loss = saliency_loss(outputs.saliency, batch, normalizers["saliency"], texts.first_own)
        parts["saliency"] = config.saliency_weight * loss
    return {"loss": sum(parts.values()), **parts}


def point_mask(frame_mask: Tensor, num_levels: int) -> Tensor:
    """(B, P) validity of every point: that of its level-0 step."""
    return torch.cat([frame_mask[:, :: 2**level] for level in range(num_levels)], dim=1)


def rated_steps(batch: Batch) -> Tensor:
    """(B, 1, T) true at valid steps of queries with ratings."""
    return (batch.frame_mask & batch.is_rated[:, None])[:, None]


def saliency_loss(logits: Tensor, batch: Batch, normalizer: Tensor, first_own: int = 0) -> Tensor:
    """Cross-entropy with the raters' mean (0-1) as a soft label over `rated_steps` of own queries."""
    if logits.shape[1] > 1:
        own = torch.arange(len(logits), device=logits.device)
        logits = logits[own, first_own + own][:, None]
    labels = batch.saliency[:, None].to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return sum_over(losses * rated_steps(batch), normalizer)
