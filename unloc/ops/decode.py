"""From displacements at points to segments (spec §5.2)."""

from jaxtyping import Float
from torch import Tensor

from unloc.ops.points import Points


def decode_segments(
    displacements: Float[Tensor, "*batch points 2"], points: Points
) -> Float[Tensor, "*batch points 2"]:
    """Segments (start, end) in level-0 steps: the point minus and plus its displacements times its stride.

    Nothing is clipped here: the length of the video is known in seconds only (`inference`).
    """
    signed = displacements * displacements.new_tensor([-1.0, 1.0])
    return points.steps[:, None] + signed * points.strides[:, None]
