"""Losses, elementwise, and how they are summed (UnLoc §3.5)."""

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


def box_loss(
    predicted: Float[Tensor, "*shape 2"], target: Float[Tensor, "*shape 2"], expression: str
) -> Float[Tensor, "*shape"]:
    """The weighted sum of losses that `loss.box` names, of displacements (>= 0, in strides) of one point."""
    terms = [weight * _box_term(predicted, target, name) for weight, name in parse_box_terms(expression)]
    return sum(terms[1:], terms[0])


def _box_term(predicted: Tensor, target: Tensor, name: str) -> Tensor:
    if name == "diou":  # in one dimension; official `iou+center_offset_squared`
        return _box_term(predicted, target, "iou") + _box_term(predicted, target, "center_offset_squared")
    overlap, union = predicted.minimum(target).sum(-1), predicted.maximum(target).sum(-1) + EPSILON
    absolute = (predicted - target).abs().sum(-1)
    shift = (predicted[..., 1] - predicted[..., 0]) - (target[..., 1] - target[..., 0])
    return {
        "l1": absolute,  # the paper's choice (§3.5, Table 1)
        # The official code's `l1`. Both segments hold the point, so max - min = |difference| and this equals iou.
        "l1_over_union": absolute / union,
        "iou": 1.0 - overlap / union,
        "center_offset_squared": (0.5 * shift / union).square(),  # the union is the enclosing length here
    }[name]


def sum_over(losses: Float[Tensor, "*shape"], normalizer: Num[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum over the normaliser plus 1e-8 (official): 0 where nothing counts."""
    return losses.sum() / (normalizer + NORMALIZER_EPSILON)
