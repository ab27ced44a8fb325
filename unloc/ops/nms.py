"""Gaussian Soft-NMS on 1-D segments, all queries or classes of a batch at once (Bodla et al. 2017; UnLoc §4.1.2)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHECK_EVERY_ON_CPU, CHECK_EVERY_ON_GPU = 1, 16  # candidates taken until it is asked whether a row has any left


@torch.no_grad()
def soft_nms(
    segments: Float[Tensor, "rows points 2"],
    scores: Float[Tensor, "rows points"],
    *,
    sigma: float,
    score_threshold: float,
    max_detections: int,
) -> tuple[Int[Tensor, "rows kept"], Float[Tensor, "rows kept"]]:
    """Greedy Gaussian Soft-NMS of each row: the candidates kept, best first, and their decayed scores (0: padding).

    Take the best candidate (ties: the lower index), multiply the score of every other by exp(-IoU²/(2 sigma)), repeat
    until `max_detections` are taken or no score is above `score_threshold` (>= 0). Segments may be in any unit.
    """
    rows, num_points = scores.shape
    check_every = CHECK_EVERY_ON_CPU if scores.device.type == "cpu" else CHECK_EVERY_ON_GPU  # a GPU is waited for
    num_kept = min(max_detections, num_points)
    remaining = scores.where(scores > score_threshold, -1.0)  # NaN, too, is never taken
    index = torch.zeros(rows, num_kept, dtype=torch.long, device=scores.device)
    kept = torch.zeros(rows, num_kept, dtype=scores.dtype, device=scores.device)
    start, end = segments[..., 0].contiguous(), segments[..., 1].contiguous()
    length, overlap, union = end - start, torch.empty_like(start), torch.empty_like(start)
    for step in range(num_kept):
        best, place = remaining.max(dim=1, keepdim=True)
        alive = best > score_threshold
        if step % check_every == 0 and not bool(alive.any()):
            break
        index[:, step : step + 1], kept[:, step : step + 1] = place.where(alive, 0), best.where(alive, 0.0)
        chosen_start, chosen_end, chosen_length = (values.gather(1, place) for values in (start, end, length))
        torch.minimum(end, chosen_end, out=overlap)
        torch.maximum(start, chosen_start, out=union)
        overlap.sub_(union).clamp_(min=0)
        torch.add(length, chosen_length, out=union).sub_(overlap).clamp_(min=1e-12)
        decay = overlap.div_(union).square_().mul_(-0.5 / sigma).exp_()
        remaining.mul_(decay).scatter_(1, place, -1.0)
    return index, kept
