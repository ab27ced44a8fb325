"""Geometry of 1-D segments."""

from jaxtyping import Float
from torch import Tensor


def segment_iou(
    segments: Float[Tensor, "*batch n 2"], others: Float[Tensor, "*batch m 2"]
) -> Float[Tensor, "*batch n m"]:
    """Intersection over union of every segment with every other; 0 where the union is empty."""
    start = segments[..., :, None, 0].maximum(others[..., None, :, 0])
    end = segments[..., :, None, 1].minimum(others[..., None, :, 1])
    overlap = (end - start).clamp(min=0)
    length = (segments[..., 1] - segments[..., 0])[..., :, None]
    other_length = (others[..., 1] - others[..., 0])[..., None, :]
    union = length + other_length - overlap
    return (overlap / union.clamp(min=1e-12)).where(union > 0, 0.0)
