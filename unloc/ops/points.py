"""Points of the pyramid, one every 2^l level-0 steps on level l, and decoding at them (UnLoc §3.3-3.4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Points:
    """All points, levels concatenated bottom to top."""

    steps: Float[Tensor, " points"]
    """Position of each point in level-0 steps."""
    strides: Float[Tensor, " points"]
    """Stride 2^l of each point's level; displacements are in this unit."""


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
