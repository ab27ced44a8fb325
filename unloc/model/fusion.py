"""Video-text fusion: a pre-norm transformer over frame tokens followed by text tokens (UnLoc §3.2)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

NORM_EPSILON = 1e-6  # flax's default, which the official fusion and heads use (CLIP's own norms use 1e-5)


@torch.no_grad()
def init_truncated_normal_(weight: Float[Tensor, "..."], variance: float) -> None:
    """Fill with a normal distribution cut at two standard deviations, of this variance after the cut (as flax)."""
    std = math.sqrt(variance) / 0.87962566103423978  # the standard deviation of a unit normal cut at ±2
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class FusionLayer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with biases everywhere and tanh-approximated GELU."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.dropout = nn.Dropout(dropout)
        for weight in (*self.qkv.weight.chunk(3), self.out.weight, self.mlp_in.weight, self.mlp_out.weight):
            nn.init.xavier_uniform_(weight)
        for linear in (self.qkv, self.out):
            nn.init.zeros_(linear.bias)
        for linear in (self.mlp_in, self.mlp_out):
            nn.init.normal_(linear.bias, std=1e-6)

    def project(self, tokens: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length three_widths"]:
        """Queries, keys and values of every token: what attention needs and what does not depend on other tokens."""
        return self.qkv(self.attention_norm(tokens))

    def forward(
        self,
        tokens: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"] | None,
        qkv: Float[Tensor, "batch length three_widths"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """One layer. Masked keys are not attended to; None: all are valid. `qkv`: the projections, where known."""
        qkv = self.project(tokens) if qkv is None else qkv
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        valid_keys = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=valid_keys)
        tokens = tokens + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(tokens)), approximate="tanh")
        return tokens + self.dropout(self.mlp_out(hidden))


class Positions(nn.Module):
    """Positions p over the whole sequence, frames then text: learned, none, or sinusoidal.

    Sinusoidal: channel 2i is sin(p·w_i), 2i+1 is cos(p·w_i), w_i = 10000^(-2i/width).
    """

    def __init__(self, kind: str, length: int, width: int) -> None:
        super().__init__()
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(length, width) * 0.02)
            return
        steps = torch.arange(length, dtype=torch.float32)[:, None]
        frequencies = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        table = torch.stack([torch.sin(steps * frequencies), torch.cos(steps * frequencies)], dim=-1).flatten(1)
        self.register_buffer("table", table if kind == "sinusoidal" else None, persistent=False)

    def forward(
        self, tokens: Float[Tensor, "batch length width"], first: int = 0
    ) -> Float[Tensor, "batch length width"]:
        """Tokens plus the positions of their places, counted from `first`."""
        return tokens if self.table is None else tokens + self.table[first : first + tokens.shape[1]]
