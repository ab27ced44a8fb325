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

    def forward(self, tokens: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time outputs"]:
        """Outputs per step of one level."""
        for norm, conv in zip(self.norms, self.convs, strict=True):
            tokens = F.relu(conv(norm(tokens).transpose(1, 2))).transpose(1, 2)
        return self.linear(tokens)


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
        return torch.cat([self.blocks[n % len(self.blocks)](level) for n, level in enumerate(levels)], dim=1)


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
        return torch.cat([F.relu(self._level(number, level)) for number, level in enumerate(levels)], dim=1)

    def _level(self, number: int, tokens: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time outputs"]:
        raw = self.blocks[number % len(self.blocks)](tokens)
        return raw if self.scales is None else raw * self.scales[number] + self.shifts[number]


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
