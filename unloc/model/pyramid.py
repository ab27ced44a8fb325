"""Feature pyramids over the fusion transformer (UnLoc §3.3, Table 1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unloc.model.fusion import NORM_EPSILON, FusionLayer, init_truncated_normal_


class DepthwiseConv(nn.Module):
    """Depthwise convolution of width 3 over time with TensorFlow's SAME padding, then a norm."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(width, width, 3, stride=stride, groups=width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        init_truncated_normal_(self.conv.weight, 1 / 3)  # LeCun normal: a depthwise convolution has fan-in 3
        nn.init.zeros_(self.conv.bias)

    def forward(self, tokens: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch out width"]:
        """The level above (stride 2) or the same level (stride 1)."""
        # At stride 2 an even length is padded at its end only: output i sees steps 2i, 2i+1, 2i+2.
        left = 1 if self.stride == 1 or tokens.shape[1] % 2 else 0
        padded = F.pad(tokens.transpose(1, 2), (left, 1))
        return self.norm(self.conv(padded).transpose(1, 2))


class Encoder(nn.Module):
    """The transformer over frames followed by text, and feature maps of the frames, one per level, bottom to top.

    none: one level, the last layer after a norm. simple (ViTDet): a cascade, in which each level is a strided
    convolution of the level below, after its norm (the paper describes convolutions of different strides on the last
    layer; the official code cascades them). fpn: the last `num_levels` layers give one level each, frames max-pooled in
    between and text not; then a top-down sum.
    """

    def __init__(self, pyramid: str, layers: Sequence[FusionLayer], width: int, num_levels: int) -> None:
        super().__init__()
        self.layers, self.pyramid = nn.ModuleList(layers), pyramid
        if pyramid == "none":
            self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        else:
            strides = [2 if pyramid == "simple" and level else 1 for level in range(num_levels)]
            self.levels = nn.ModuleList(DepthwiseConv(width, stride) for stride in strides)

    def forward(
        self,
        tokens: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"] | None,
        num_frames: int,
        qkv: Float[Tensor, "batch length three_widths"] | None = None,
    ) -> list[Tensor]:
        """All levels; `qkv` are the first layer's projections of the tokens where the caller has them."""
        stages, top = [], len(self.layers) - 1
        first_stage = len(self.layers) - len(self.levels) if self.pyramid == "fpn" else top
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, mask, qkv if number == 0 else None)
            if number >= first_stage:
                stages.append(tokens[:, :num_frames])
            if first_stage <= number < top:
                pooled = F.max_pool1d(stages[-1].transpose(1, 2), 2).transpose(1, 2)
                tokens = torch.cat([pooled, tokens[:, num_frames:]], dim=1)
                if mask is not None:
                    mask = torch.cat([mask[:, 0:num_frames:2], mask[:, num_frames:]], dim=1)
                num_frames //= 2
        if self.pyramid == "none":
            return [self.norm(stages[0])]
        if self.pyramid == "simple":
            for level in self.levels:
                stages.append(level(stages[-1]))
            return stages[1:]
        for lower in range(len(stages) - 2, -1, -1):
            stages[lower] = stages[lower] + stages[lower + 1].repeat_interleave(2, dim=1)
        return [level(stage) for level, stage in zip(self.levels, stages, strict=True)]
