"""From displacements at points to segments (UnLoc §3.4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from unloc.ops.points import Points


def decode_segments(
    displacements: Float[Tensor, "*batch points 2"], points: Points
) -> Float[Tensor, "*batch points 2"]:
    """Segments (start, end) in level-0 steps: the point minus and plus its displacements times its stride.

    Nothing is clipped here: the length of the video is known in seconds only (`unloc.inference.predict`).
    """
    to_start, to_end = (displacements * points.strides[:, None]).unbind(-1)
    return torch.stack([points.steps - to_start, points.steps + to_end], dim=-1)
