"""Heads: relevance and displacements per point, frame logits, saliency (UnLoc §3.3; spec §1.7-1.8)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from unloc.model.fusion import NORM_EPSILON, init_truncated_normal_


class ConvBlocks(nn.Module):
    """n × [norm → convolution of width 3 → ReLU] → linear. Zero padding at both ends; the last linear has no norm."""

    def __init__(self, width: int, num_convs: int, num_outputs: int, bias: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(num_convs))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(num_convs))
        self.linear = nn.Linear(width, num_outputs)
        for conv in self.convs:
            init_truncated_normal_(conv.weight, 1 / (3 * width))  # LeCun normal
            nn.init.zeros_(conv.bias)
        init_truncated_normal_(self.linear.weight, 2 / (width + num_outputs))  # Xavier normal
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Outputs of all points of the levels, bottom to top; no level sees another."""
        tokens, is_point = _separated(levels)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            rows = (norm(tokens) * is_point[:, None]).flatten(0, 1)
            tokens = F.relu(_convolve(rows, conv)).unflatten(0, tokens.shape[:2])
        return self.linear(tokens)[:, is_point]


def _separated(
    levels: Sequence[Tensor],
) -> tuple[Float[Tensor, "batch rows width"], Bool[Tensor, " rows"]]:
    """All levels one after another with a row of zeros before, between and after, and which rows are points.

    A width-3 convolution then pads every level by itself, whatever stands beside it.
    """
    zeros = levels[0].new_zeros(len(levels[0]), 1, levels[0].shape[2])
    rows = [zeros, *(part for level in levels for part in (level, zeros))]
    is_point = [row is not zeros for row in rows for _ in range(row.shape[1])]
    return torch.cat(rows, dim=1), torch.tensor(is_point, device=zeros.device)


def _convolve(rows: Float[Tensor, "rows width"], conv: nn.Conv1d) -> Float[Tensor, "rows width"]:
    """The convolution over rows whose first and last are zero, in the precision of autocast."""
    operands = (rows, conv.weight, conv.bias)
    if torch.is_autocast_enabled(rows.device.type):
        operands = [operand.to(torch.get_autocast_dtype(rows.device.type)) for operand in operands]
    return _ShiftedProducts.apply(*operands)


class _ShiftedProducts(torch.autograd.Function):
    """A width-3 convolution over rows as three matrix products, of the rows before, the rows and the rows after.

    Nothing is unfolded or transposed, forward or backward: four fifths of the CPU time of one product over unfolded
    rows, two fifths of that of oneDNN's convolution (16 x 240 rows of 512 channels).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(N, C_in) to (N, C_out) with a weight (C_out, C_in, 3)."""
        before, here, after = (part.contiguous() for part in weight.unbind(2))
        ctx.save_for_backward(rows, before, here, after)
        out = torch.addmm(bias, rows, here.t())
        out[1:].addmm_(rows[:-1], before.t())
        out[:-1].addmm_(rows[1:], after.t())
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of rows, weight and bias."""
        rows, before, here, after = ctx.saved_tensors
        of_rows = grad @ here
        of_rows[:-1].addmm_(grad[1:], before)
        of_rows[1:].addmm_(grad[:-1], after)
        of_weight = [grad[1:].t() @ rows[:-1], grad.t() @ rows, grad[:-1].t() @ rows[1:]]
        return of_rows, torch.stack(of_weight, dim=2), grad.sum(0)


def _all_levels(blocks: nn.ModuleList, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
    """One block for all levels, or each level through its own."""
    if len(blocks) == 1:
        return blocks[0](levels)
    return torch.cat([block([level]) for block, level in zip(blocks, levels, strict=True)], dim=1)


class RelevanceHead(nn.Module):
    """Relevance logits of all points: one block for all levels, or one per level."""

    def __init__(
        self, width: int, num_convs: int, num_levels: int, *, shared: bool, num_outputs: int, bias: float
    ) -> None:
        super().__init__()
        count = 1 if shared else num_levels
        self.blocks = nn.ModuleList(ConvBlocks(width, num_convs, num_outputs, bias) for _ in range(count))

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Logits of all levels, bottom to top."""
        return _all_levels(self.blocks, levels)


class DisplacementHead(nn.Module):
    """Displacements (>= 0, in strides) of all points.

    A shared block gets a scale and a shift per level, so that one set of weights serves all strides; separate blocks
    need none (official).
    """

    def __init__(
        self, width: int, num_convs: int, num_levels: int, *, shared: bool, num_outputs: int, bias: float
    ) -> None:
        super().__init__()
        count = 1 if shared else num_levels
        self.blocks = nn.ModuleList(ConvBlocks(width, num_convs, num_outputs, bias) for _ in range(count))
        self.scales = nn.Parameter(torch.ones(num_levels)) if shared else None
        self.shifts = nn.Parameter(torch.zeros(num_levels)) if shared else None

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Displacements of all levels, bottom to top."""
        raw = _all_levels(self.blocks, levels)
        if self.scales is not None:
            parts = zip(raw.split([level.shape[1] for level in levels], dim=1), self.scales, self.shifts, strict=True)
            raw = torch.cat([part * scale + shift for part, scale, shift in parts], dim=1)
        return F.relu(raw)


class LinearHead(nn.Module):
    """One linear layer per step of the bottom level (official AS head)."""

    def __init__(self, width: int, *, num_outputs: int, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_outputs)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch time outputs"]:
        """Logits of the bottom level."""
        return self.linear(levels[0])
