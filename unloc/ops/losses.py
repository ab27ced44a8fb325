"""Losses, elementwise, and how they are summed (UnLoc §3.5)."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from unloc.config import parse_box_terms

EPSILON = 1e-6  # official: added to the union
NORMALIZER_EPSILON = 1e-8  # official: added to every normaliser


def focal_loss(
    logits: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"], alpha: float, gamma: float
) -> Float[Tensor, "*shape"]:
    """Sigmoid focal loss per element: (alpha y + (1-alpha)(1-y)) (1-p_t)^gamma cross-entropy."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    wrong = (1.0 - (-cross_entropy).exp()).clamp(min=1e-12)  # at 0 a power below 1 has no gradient
    return (alpha * labels + (1.0 - alpha) * (1.0 - labels)) * wrong.pow(gamma) * cross_entropy


def sigmoid_loss(logits: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Binary cross-entropy per element."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _overlap_union(
    predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    return predicted.minimum(target).sum(-1), predicted.maximum(target).sum(-1)


def l1_loss(predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
    """Sum of absolute differences of both displacements, in stride units: the paper's choice (§3.5, Table 1)."""
    return (predicted - target).abs().sum(-1)


def l1_over_union_loss(
    predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]
) -> Float[Tensor, "*shape"]:
    """The official code's `l1`: absolute differences divided by the union.

    Both segments hold the same point, so max - min = |difference| and this equals 1 - IoU (up to epsilon): the
    official `l1` and `iou` are the same function, and its `l1+iou` is twice that.
    """
    _, union = _overlap_union(predicted, target)
    return l1_loss(predicted, target) / (union + EPSILON)


def iou_loss(predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
    """1 - IoU of two segments around the same point, given as distances to start and end (>= 0)."""
    overlap, union = _overlap_union(predicted, target)
    return 1.0 - overlap / (union + EPSILON)


def center_offset_squared_loss(
    predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]
) -> Float[Tensor, "*shape"]:
    """Squared distance of the centres over the squared union (which is the enclosing length here)."""
    _, union = _overlap_union(predicted, target)
    shift = (predicted[..., 1] - predicted[..., 0]) - (target[..., 1] - target[..., 0])
    return (0.5 * shift / (union + EPSILON)).square()


def diou_loss(predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
    """1-D DIoU: 1 - IoU plus the centre offset term (official `iou+center_offset_squared`)."""
    return iou_loss(predicted, target) + center_offset_squared_loss(predicted, target)


BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "l1_over_union": l1_over_union_loss,
    "iou": iou_loss,
    "diou": diou_loss,
    "center_offset_squared": center_offset_squared_loss,
}
"""What `loss.box` may name (`config.BOX_TERMS`)."""


def box_loss(
    predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"], expression: str
) -> Float[Tensor, "*shape"]:
    """The weighted sum of box losses that an expression names, per element."""
    terms = [weight * BOX_LOSSES[name](predicted, target) for weight, name in parse_box_terms(expression)]
    return sum(terms[1:], terms[0])


def sum_over(losses: Float[Tensor, "*shape"], normalizer: Num[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum over the normaliser plus 1e-8 (official): 0 where nothing counts."""
    return losses.sum() / (normalizer + NORMALIZER_EPSILON)
