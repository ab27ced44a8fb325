"""Feature pyramids over the fusion transformer (UnLoc §3.3, Table 1).

Each encoder runs the transformer over frames followed by text and returns one feature map per level, bottom to top.
`qkv` are the first layer's projections of the tokens where the caller has them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unloc.model.fusion import NORM_EPSILON, Fusion, init_truncated_normal_

Tokens = Float[Tensor, "batch length width"]
Mask = Bool[Tensor, "batch length"] | None
Projections = Float[Tensor, "batch length three_widths"] | None


class DepthwiseConv(nn.Module):
    """Depthwise convolution of width 3 over time with TensorFlow's SAME padding, then a norm.

    Stride 1 pads (1, 1); stride 2 on an even length pads (0, 1), so output i sees steps 2i, 2i+1, 2i+2.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(width, width, 3, stride=stride, groups=width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        init_truncated_normal_(self.conv.weight, 1 / 3)  # LeCun normal: a depthwise convolution has fan-in 3
        nn.init.zeros_(self.conv.bias)

    def forward(self, tokens: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch out width"]:
        """The level above (stride 2) or the same level (stride 1)."""
        left = 1 if self.stride == 1 or tokens.shape[1] % 2 else 0
        padded = F.pad(tokens.transpose(1, 2), (left, 1))
        return self.norm(self.conv(padded).transpose(1, 2))


class PlainEncoder(nn.Module):
    """No pyramid: the transformer and a final norm; one level."""

    def __init__(self, layers: Fusion, width: int) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, tokens: Tokens, mask: Mask, num_frames: int, qkv: Projections = None) -> list[Tensor]:
        """Frames of the last layer."""
        return [self.norm(self.layers(tokens, mask, qkv)[:, :num_frames])]


class SimplePyramidEncoder(nn.Module):
    """ViTDet's simple pyramid as a cascade: each level is a strided convolution of the level below, after its norm.

    The paper describes convolutions of different strides on the last layer; the official code cascades them.
    """

    def __init__(self, layers: Fusion, width: int, num_levels: int) -> None:
        super().__init__()
        self.layers = layers
        self.levels = nn.ModuleList(DepthwiseConv(width, 1 if level == 0 else 2) for level in range(num_levels))

    def forward(self, tokens: Tokens, mask: Mask, num_frames: int, qkv: Projections = None) -> list[Tensor]:
        """All levels from the frames of the last layer."""
        features, current = [], self.layers(tokens, mask, qkv)[:, :num_frames]
        for level in self.levels:
            current = level(current)
            features.append(current)
        return features


class FeaturePyramidEncoder(nn.Module):
    """FPN: the last `num_levels` layers give one level each, frames max-pooled in between; then a top-down sum."""

    def __init__(self, layers: Fusion, width: int, num_levels: int) -> None:
        super().__init__()
        self.layers = layers
        self.first_level = len(layers) - num_levels
        self.levels = nn.ModuleList(DepthwiseConv(width, 1) for _ in range(num_levels))

    def forward(self, tokens: Tokens, mask: Mask, num_frames: int, qkv: Projections = None) -> list[Tensor]:
        """All levels; text tokens pass through unpooled."""
        stages = []
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, mask, qkv if number == 0 else None)
            if number >= self.first_level:
                frames, text = tokens[:, :num_frames], tokens[:, num_frames:]
                stages.append(frames)
                if number < len(self.layers) - 1:
                    pooled = F.max_pool1d(frames.transpose(1, 2), 2).transpose(1, 2)
                    tokens = torch.cat([pooled, text], dim=1)
                    if mask is not None:
                        mask = torch.cat([mask[:, 0:num_frames:2], mask[:, num_frames:]], dim=1)
                    num_frames //= 2
        for lower in range(len(stages) - 2, -1, -1):
            stages[lower] = stages[lower] + stages[lower + 1].repeat_interleave(2, dim=1)
        return [level(stage) for level, stage in zip(self.levels, stages, strict=True)]
