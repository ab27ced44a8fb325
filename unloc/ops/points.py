"""Points of the pyramid, one every 2^l level-0 steps on level l: their targets, and decoding (UnLoc §3.3-3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FILLER_STEPS = 1e6  # distance to the boundary of a segment that the point is outside of; no loss reads it


@dataclass(frozen=True)
class Points:
    """All points, levels concatenated bottom to top."""

    steps: Float[Tensor, " points"]  # position of each point in level-0 steps
    strides: Float[Tensor, " points"]  # stride 2^l of each point's level; displacements are in this unit


def make_points(num_steps: int, num_levels: int, device: torch.device | str = "cpu") -> Points:
    """Points of a pyramid over T steps, a multiple of 2^(levels-1): 0, 2^l, 2·2^l, … on level l."""
    levels = [torch.arange(0, num_steps, 2**level, dtype=torch.float32, device=device) for level in range(num_levels)]
    strides = [torch.full_like(steps, float(2**level)) for level, steps in enumerate(levels)]
    return Points(torch.cat(levels), torch.cat(strides))


def decode_segments(
    displacements: Float[Tensor, "*batch points 2"], points: Points
) -> Float[Tensor, "*batch points 2"]:
    """Segments (start, end) in level-0 steps, not clipped: the point minus and plus displacements times its stride."""
    to_start, to_end = (displacements * points.strides[:, None]).unbind(-1)
    return torch.stack([points.steps - to_start, points.steps + to_end], dim=-1)


@dataclass(frozen=True)
class Targets:
    """What the losses compare with."""

    relevance: Bool[Tensor, "batch texts points"]  # true at positive points
    displacements: Float[Tensor, "batch texts points 2"]  # to start and end in strides; meaningful at positive points


def localization_targets(
    segments_steps: Float[Tensor, "batch segments 2"],
    segment_text: Int[Tensor, "batch segments"],
    num_texts: int,
    points: Points,
    range_edges: Sequence[float],
    radius: float,
) -> Targets:
    """Targets of every (video, text) pair.

    `segment_text` names the text each segment belongs to, -1 for padding. A point t of level l is positive for a
    segment [s, e] if max(t-s, e-t) lies in [edge_l, edge_l+1) and t lies within radius·2^l of the centre, clipped to
    the segment, both ends included. Overlapping segments of one text: distances are independent minima, as in the
    official code, so that start and end may come from different segments.
    """
    start, end = segments_steps[..., 0, None], segments_steps[..., 1, None]
    to_start, to_end = points.steps - start, end - points.steps
    farthest, level = to_start.maximum(to_end), points.strides.log2().round().long()
    edges = torch.tensor(list(range_edges), dtype=farthest.dtype).to(farthest.device, non_blocking=True)
    centre, reach = (start + end) / 2, radius * points.strides
    valid = (segment_text >= 0)[..., None]
    positive = valid & (farthest >= edges[level]) & (farthest < edges[level + 1])
    positive &= (points.steps >= start.maximum(centre - reach)) & (points.steps <= end.minimum(centre + reach))
    row = segment_text.where(segment_text >= 0, num_texts)[..., None].expand_as(positive)
    relevance = positive.new_zeros(len(row), num_texts + 1, row.shape[-1], dtype=torch.long)
    relevance = relevance.scatter_reduce(1, row, positive.long(), "amax")
    nearest = []
    for distance in (to_start, to_end):
        inside = distance.where(valid & (distance >= 0), FILLER_STEPS)
        filler = distance.new_full(relevance.shape, FILLER_STEPS)
        nearest.append(filler.scatter_reduce(1, row, inside, "amin")[:, :num_texts])
    displacements = torch.stack(nearest, dim=-1) / points.strides[:, None]
    return Targets(relevance[:, :num_texts].bool(), displacements)


def shared_displacements(targets: Targets, rows_per_video: int = 1) -> Targets:
    """Targets for a model with one pair of displacements for all classes: at each point that of the shortest segment
    which is positive there, of any class (ActionFormer, Zhang et al. 2022). Relevance stays per class.

    `rows_per_video` neighbouring rows of the batch are of one video.
    """
    positive = targets.relevance.unflatten(0, (-1, rows_per_video)).flatten(1, 2)
    displacements = targets.displacements.unflatten(0, (-1, rows_per_video)).flatten(1, 2)
    shortest = displacements.sum(-1).where(positive, torch.inf).argmin(dim=1)[:, None, :, None]
    shared = torch.take_along_dim(displacements, shortest, dim=1).expand_as(displacements)
    return Targets(targets.relevance, shared.reshape(targets.displacements.shape))
