"""Gaussian Soft-NMS on 1-D segments, all queries or classes of a batch at once (spec §5.3; Bodla et al. 2017)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What Soft-NMS keeps, best first; rows are padded where fewer are left."""

    index: Int[Tensor, "rows kept"]
    """Which candidate."""
    scores: Float[Tensor, "rows kept"]
    """Decayed scores, falling; 0 where padded."""
    valid: Bool[Tensor, "rows kept"]
    """False where padded."""


def soft_nms(
    segments: Float[Tensor, "rows points 2"],
    scores: Float[Tensor, "rows points"],
    *,
    sigma: float,
    score_threshold: float,
    max_detections: int,
) -> Kept:
    """Greedy Gaussian Soft-NMS of every row by itself.

    Take the best candidate (ties: the lower index), multiply the score of every other by exp(-IoU²/(2 sigma)), repeat
    until `max_detections` are taken or no score is above `score_threshold`. Segments may be in any unit.
    """
    rows, num_points = scores.shape
    num_kept = min(max_detections, num_points)
    remaining = scores.clone()
    index = torch.zeros(rows, num_kept, dtype=torch.long, device=scores.device)
    kept = torch.zeros(rows, num_kept, dtype=scores.dtype, device=scores.device)
    start, end = segments[..., 0].contiguous(), segments[..., 1].contiguous()
    length = end - start
    row = torch.arange(rows, device=scores.device)
    for step in range(num_kept):
        best, position = remaining.max(dim=1)
        alive = best > score_threshold
        if not bool(alive.any()):
            break
        index[:, step] = position
        kept[:, step] = best.where(alive, 0.0)
        overlap = end.minimum(end[row, position, None]) - start.maximum(start[row, position, None])
        overlap.clamp_(min=0)
        union = length + length[row, position, None] - overlap
        iou = overlap / union.clamp(min=1e-12)
        remaining *= iou.square_().mul_(-0.5 / sigma).exp_()
        remaining[row, position] = -1.0
    return Kept(index, kept, kept > score_threshold)
