"""Heads: relevance and displacements per point, frame logits, saliency (UnLoc §3.3; spec §1.7-1.8)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unloc.model.fusion import NORM_EPSILON


class ConvBlocks(nn.Module):
    """n × [norm → convolution of width 3 → ReLU] → linear. Zero padding at both ends; the last linear has no norm."""

    def __init__(self, width: int, num_convs: int, num_outputs: int, bias: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(num_convs))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(num_convs))
        self.linear = nn.Linear(width, num_outputs)
        for conv in self.convs:
            nn.init.trunc_normal_(conv.weight, std=(1 / (3 * width)) ** 0.5 / 0.87962566)  # LeCun normal
            nn.init.zeros_(conv.bias)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch points outputs"]:
        """Outputs of all points of the levels, bottom to top; no level sees another."""
        sizes = [level.shape[1] for level in levels]
        tokens = torch.cat(list(levels), dim=1)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            # One matrix product for all levels with channels last: nothing is transposed.
            weight = conv.weight.permute(0, 2, 1).flatten(1)
            tokens = F.relu(F.linear(_with_neighbours(norm(tokens), sizes), weight, conv.bias))
        return self.linear(tokens)


def _with_neighbours(
    tokens: Float[Tensor, "batch points width"], sizes: Sequence[int]
) -> Float[Tensor, "batch points three_widths"]:
    """The point before, the point itself and the point after on the same level; zeros beyond its ends."""
    padded = [F.pad(level, (0, 0, 1, 1)) for level in tokens.split(list(sizes), dim=1)]
    shifts = [[level[:, k : k + size] for level, size in zip(padded, sizes, strict=True)] for k in range(3)]
    return torch.cat([torch.cat(levels, dim=1) for levels in shifts], dim=-1)


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
