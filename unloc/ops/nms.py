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


@torch.no_grad()
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
    until `max_detections` are taken or no score is above `score_threshold` (>= 0). Segments may be in any unit.
    """
    rows, num_points = scores.shape
    num_kept = min(max_detections, num_points)
    remaining = scores.where(scores > score_threshold, -1.0)  # NaN, too, is never taken
    index = torch.zeros(rows, num_kept, dtype=torch.long, device=scores.device)
    kept = torch.zeros(rows, num_kept, dtype=scores.dtype, device=scores.device)
    start, end = segments[..., 0].contiguous(), segments[..., 1].contiguous()
    decay = _Decay(start, end, sigma)
    for step in range(num_kept):
        best, place = remaining.max(dim=1, keepdim=True)
        alive = best > score_threshold
        if not bool(alive.any()):
            break
        index[:, step : step + 1], kept[:, step : step + 1] = place, best.where(alive, 0.0)
        remaining.mul_(decay.around(place)).scatter_(1, place, -1.0)
    return Kept(index, kept, kept > score_threshold)


class _Decay:
    """Factors exp(-IoU²/(2 sigma)) of all candidates beside the chosen ones, in memory that is used again."""

    def __init__(self, start: Float[Tensor, "rows points"], end: Float[Tensor, "rows points"], sigma: float) -> None:
        self.start, self.end, self.length, self.sigma = start, end, end - start, sigma
        self.overlap, self.union = torch.empty_like(start), torch.empty_like(start)

    def around(self, place: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows points"]:
        """Factors beside one candidate of each row; valid until the next call."""
        start, end, length = (values.gather(1, place) for values in (self.start, self.end, self.length))
        torch.minimum(self.end, end, out=self.overlap)
        torch.maximum(self.start, start, out=self.union)
        self.overlap.sub_(self.union).clamp_(min=0)
        torch.add(self.length, length, out=self.union).sub_(self.overlap).clamp_(min=1e-12)
        return self.overlap.div_(self.union).square_().mul_(-0.5 / self.sigma).exp_()
