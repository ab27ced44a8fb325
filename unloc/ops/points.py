"""Points of the pyramid: level l has one every 2^l level-0 steps (UnLoc §3.3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unloc.errors import ConfigError


@dataclass(frozen=True)
class Points:
    """All points, levels concatenated bottom to top."""

    steps: Float[Tensor, " points"]
    """Position of each point in level-0 steps."""
    strides: Float[Tensor, " points"]
    """Stride 2^l of each point's level; displacements are in this unit."""
    level_sizes: tuple[int, ...]
    """Points of each level."""


def require_levels(num_steps: int, num_levels: int) -> None:
    """Raise ConfigError unless T is a multiple of 2^(levels-1): otherwise levels would not line up."""
    coarsest = 2 ** (num_levels - 1)
    if num_steps <= 0 or num_steps % coarsest:
        raise ConfigError(
            f"data.num_steps: got {num_steps}, expected a positive multiple of {coarsest} for {num_levels} levels"
        )


def make_points(num_steps: int, num_levels: int, device: torch.device | str = "cpu") -> Points:
    """Points of a pyramid over T steps: 0, 2^l, 2·2^l, … on level l.

    Raises ConfigError unless T is a multiple of 2^(levels-1).
    """
    require_levels(num_steps, num_levels)
    levels = [torch.arange(0, num_steps, 2**level, dtype=torch.float32, device=device) for level in range(num_levels)]
    strides = [torch.full_like(steps, float(2**level)) for level, steps in enumerate(levels)]
    return Points(torch.cat(levels), torch.cat(strides), tuple(len(steps) for steps in levels))
