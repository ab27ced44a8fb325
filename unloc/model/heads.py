"""Heads: relevance and displacements per point, frame logits, saliency (UnLoc §3.4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unloc.model.fusion import NORM_EPSILON, init_truncated_normal_
from unloc.ops.conv import conv3


class ConvBlocks(nn.Module):
    """n × [norm → convolution of width 3 → ReLU] → linear, padded with zeros; n = 0 is the official AS head."""

    def __init__(self, width: int, num_convs: int, num_outputs: int, bias: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(num_convs))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(num_convs))
        self.linear = nn.Linear(width, num_outputs)
        for conv in self.convs:
            init_truncated_normal_(conv.weight, 1 / (3 * width))  # LeCun normal
            nn.init.zeros_(conv.bias)
        if num_convs:
            init_truncated_normal_(self.linear.weight, 2 / (width + num_outputs))  # Xavier normal
        else:
            nn.init.xavier_uniform_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Outputs of all points of the levels, bottom to top; no level sees another."""
        if not self.convs:
            return self.linear(torch.cat(levels, dim=1))
        # One sequence of all levels, with a row of zeros before, between and after them: the padding of each.
        zeros = levels[0].new_zeros(len(levels[0]), 1, levels[0].shape[2])
        parts = [part for level in levels for part in (zeros, level)] + [zeros]
        masks = [zeros.new_full((part.shape[1], 1), i % 2 == 1, dtype=torch.bool) for i, part in enumerate(parts)]
        tokens, is_point = torch.cat(parts, dim=1), torch.cat(masks)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            tokens = F.relu(conv3(norm(tokens) * is_point, conv.weight, conv.bias))
        outputs = self.linear(tokens).split([part.shape[1] for part in parts], dim=1)
        return torch.cat(outputs[1::2], dim=1)


class PointHead(nn.Module):
    """Outputs of all points: one block for all levels, or each level through its own.

    `displacements`: outputs are >= 0, in strides; a shared block gets a scale and a shift per level, so that one set of
    weights serves all strides; separate blocks need none (as the official code).
    """

    def __init__(
        self,
        width: int,
        num_convs: int,
        num_levels: int,
        *,
        shared: bool,
        num_outputs: int,
        bias: float,
        displacements: bool = False,
    ) -> None:
        super().__init__()
        count, self.displacements = 1 if shared else num_levels, displacements
        self.blocks = nn.ModuleList(ConvBlocks(width, num_convs, num_outputs, bias) for _ in range(count))
        self.scales = nn.Parameter(torch.ones(num_levels)) if displacements and shared else None
        self.shifts = nn.Parameter(torch.zeros(num_levels)) if displacements and shared else None

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Outputs of all levels, bottom to top."""
        if len(self.blocks) == 1:
            raw = self.blocks[0](levels)
        else:
            raw = torch.cat([block([level]) for block, level in zip(self.blocks, levels, strict=True)], dim=1)
        if self.scales is not None:
            parts = zip(raw.split([level.shape[1] for level in levels], dim=1), self.scales, self.shifts, strict=True)
            raw = torch.cat([part * scale + shift for part, scale, shift in parts], dim=1)
        return F.relu(raw) if self.displacements else raw
