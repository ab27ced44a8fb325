"""UnLoc: frame tokens and text tokens in, relevance and displacements per point out (UnLoc §3, Figure 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unloc.config import ModelConfig
from unloc.errors import ConfigError, InputError
from unloc.model.fusion import FusionLayer, Positions
from unloc.model.heads import ConvBlocks, DisplacementHead, LinearHead, RelevanceHead
from unloc.model.pyramid import FeaturePyramidEncoder, PlainEncoder, SimplePyramidEncoder
from unloc.ops.points import make_points

MAX_TEXT_TOKENS = 128  # rows of a learned position table beyond the frames; CLIP's own limit is 77


@dataclass(frozen=True)
class Outputs:
    """What the model says, per video and text. P points over all levels, T level-0 steps."""

    relevance: Float[Tensor, "batch texts points"]
    """Logits; for AS the points are the level-0 steps."""
    displacements: Float[Tensor, "batch texts points 2"] | None
    """Distances to start and end in strides, >= 0; None where steps are labelled (AS)."""
    saliency: Float[Tensor, "batch texts time"] | None
    """Saliency logits per level-0 step where there is a saliency head."""


class UnLoc(nn.Module):
    """Fusion, pyramid and heads over the tokens of two towers.

    `frame_dim` and `text_dim` are the channels of the tokens; tokens already as wide as the fusion enter as they are
    (CLIP's own projections then stand in for the official video and text projections), others through a linear layer
    without bias. `localizes` False builds no displacement head (AS).
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_dim: int,
        text_dim: int,
        num_steps: int,
        *,
        num_classes: int | None = None,
        localizes: bool = True,
    ) -> None:
        super().__init__()
        make_points(num_steps, _num_levels(config))  # raises where the levels would not line up
        if config.fusion == "none" and not num_classes:
            raise ConfigError("model.fusion none: needs class names to be the outputs; this task's texts are sentences")
        self.config, self.num_classes = config, num_classes
        self.video_projection = _projection(frame_dim, config.width)
        self.text_projection = _projection(text_dim, config.width)
        self.positions = Positions(config.positions, num_steps + MAX_TEXT_TOKENS, config.width)
        self.encoder = _encoder(config)
        num_outputs = num_classes if config.fusion == "none" else 1
        self.relevance_head = _relevance_head(config, num_outputs) if config.fusion != "late" else None
        self.displacement_head = _displacement_head(config, num_outputs) if localizes else None
        self.saliency_head = ConvBlocks(config.width, 1, 1, 0.0) if config.saliency_head else None
        if config.fusion == "late":  # CLIP's own start of the temperature: 1 / 0.07
            self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07))
            self.logit_bias = nn.Parameter(torch.tensor(config.class_bias))

    def forward(
        self,
        frames: Float[Tensor, "batch time frame_dim"],
        frame_mask: Bool[Tensor, "batch time"],
        texts: Float[Tensor, "texts tokens text_dim"],
        text_mask: Bool[Tensor, "texts tokens"],
        *,
        pairing: str = "all",
    ) -> Outputs:
        """Outputs of every video with every text (pairing `all`), or of video b with text b (`own`: one text each)."""
        frames = self.video_projection(frames)
        if self.config.fusion == "none":
            return self._without_text(frames, frame_mask)
        if texts.shape[1] > MAX_TEXT_TOKENS:
            raise InputError(
                f"texts of {texts.shape[1]} tokens; the model takes {MAX_TEXT_TOKENS}: data.max_text_tokens"
            )
        texts, text_mask = self._text_tokens(self.text_projection(texts), text_mask)
        if self.config.fusion == "late":
            return self._late(frames, frame_mask, texts, text_mask, pairing)
        if pairing == "own":
            return self._stack([self._fuse(frames, frame_mask, texts, text_mask)], len(frames))
        return self._every_pair(frames, frame_mask, texts, text_mask)

    def _text_tokens(
        self, texts: Float[Tensor, "texts tokens width"], mask: Bool[Tensor, "texts tokens"]
    ) -> tuple[Float[Tensor, "texts kept width"], Bool[Tensor, "texts kept"]]:
        if self.config.text_tokens == "all":
            return texts, mask
        last = mask.sum(dim=1) - 1  # EOS is the last valid token
        return texts[torch.arange(len(texts), device=texts.device), last][:, None], mask[:, :1] | True

    def _every_pair(self, frames: Tensor, frame_mask: Tensor, texts: Tensor, text_mask: Tensor) -> Outputs:
        """All B x C sequences, at most `max_texts_in_flight` texts at a time (recomputed in the backward pass)."""
        chunk = self.config.max_texts_in_flight or len(texts)
        parts = []
        for start in range(0, len(texts), chunk):
            arguments = (frames, frame_mask, texts[start : start + chunk], text_mask[start : start + chunk])
            if chunk < len(texts) and torch.is_grad_enabled():
                parts.append(checkpoint(self._fuse_pairs, *arguments, use_reentrant=False))
            else:
                parts.append(self._fuse_pairs(*arguments))
        return self._stack(parts, len(frames))

    def _fuse_pairs(
        self, frames: Tensor, frame_mask: Tensor, texts: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        videos, count = len(frames), len(texts)
        return self._fuse(
            frames.repeat_interleave(count, dim=0),
            frame_mask.repeat_interleave(count, dim=0),
            texts.repeat(videos, 1, 1),
            text_mask.repeat(videos, 1),
        )

    def _fuse(
        self, frames: Tensor, frame_mask: Tensor, texts: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Raw head outputs of N sequences: relevance (N, P, 1), displacements (N, P, 2), saliency (N, T, 1)."""
        mask = torch.cat([frame_mask, text_mask], dim=1)
        tokens = self.positions(torch.cat([frames, texts], dim=1))
        levels = self.encoder(tokens, None if bool(mask.all()) else mask, frames.shape[1])
        return self._heads(levels)

    def _heads(self, levels: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        localizes = self.displacement_head is not None
        relevance = self.relevance_head(levels if localizes else levels[:1])
        return relevance, *self._other_heads(levels)

    def _other_heads(self, levels: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        displacements = self.displacement_head(levels) if self.displacement_head is not None else None
        saliency = self.saliency_head(levels[0]) if self.saliency_head is not None else None
        return displacements, saliency

    def _stack(self, parts: list[tuple[Tensor, Tensor | None, Tensor | None]], videos: int) -> Outputs:
        def joined(index: int) -> Tensor | None:
            if parts[0][index] is None:
                return None
            return torch.cat([part[index].unflatten(0, (videos, -1)) for part in parts], dim=1)

        relevance, displacements, saliency = (joined(index) for index in range(3))
        saliency = saliency.squeeze(-1) if saliency is not None else None
        return Outputs(relevance.squeeze(-1), displacements, saliency)

    def _video_levels(self, frames: Tensor, frame_mask: Tensor) -> list[Tensor]:
        mask = None if bool(frame_mask.all()) else frame_mask
        return self.encoder(self.positions(frames), mask, frames.shape[1])

    def _late(self, frames: Tensor, frame_mask: Tensor, texts: Tensor, text_mask: Tensor, pairing: str) -> Outputs:
        """Late fusion (Table 3): cosine of each point's feature and the text's EOS, with a learned scale and bias;
        displacements and saliency do not see the text.
        """
        levels = self._video_levels(frames, frame_mask)
        displacements, saliency = self._other_heads(levels)
        points = F.normalize(torch.cat(levels if displacements is not None else levels[:1], dim=1), dim=-1)
        last = text_mask.sum(dim=1) - 1
        text = F.normalize(texts[torch.arange(len(texts), device=texts.device), last], dim=-1)
        text = text[:, None] if pairing == "own" else text.expand(len(points), -1, -1)
        relevance = self.logit_scale * text @ points.transpose(1, 2) + self.logit_bias
        count = relevance.shape[1]
        if displacements is not None:
            displacements = displacements[:, None].expand(-1, count, -1, -1)
        saliency = None if saliency is None else saliency.transpose(1, 2).expand(-1, count, -1)
        return Outputs(relevance, displacements, saliency)

    def _without_text(self, frames: Tensor, frame_mask: Tensor) -> Outputs:
        """No text (Table 3): a logit and a pair of displacements per class from the frames alone."""
        relevance, displacements, saliency = self._heads(self._video_levels(frames, frame_mask))
        if displacements is not None:
            displacements = displacements.unflatten(-1, (-1, 2)).permute(0, 2, 1, 3)
        return Outputs(relevance.transpose(1, 2), displacements, None if saliency is None else saliency.transpose(1, 2))


def _projection(dim: int, width: int) -> nn.Module:
    return nn.Identity() if dim == width else nn.Linear(dim, width, bias=False)


def _encoder(config: ModelConfig) -> nn.Module:
    layers = nn.ModuleList(
        FusionLayer(config.width, config.num_heads, config.mlp_width, config.dropout) for _ in range(config.num_layers)
    )
    if config.pyramid == "simple":
        return SimplePyramidEncoder(layers, config.width, config.num_levels)
    if config.pyramid == "fpn":
        return FeaturePyramidEncoder(layers, config.width, config.num_levels)
    return PlainEncoder(layers, config.width)


def _relevance_head(config: ModelConfig, num_outputs: int) -> nn.Module:
    if config.head == "linear":
        return LinearHead(config.width, num_outputs=num_outputs, bias=config.class_bias)
    return RelevanceHead(
        config.width,
        config.num_head_convs,
        _num_levels(config),
        shared=config.share_heads,
        num_outputs=num_outputs,
        bias=config.class_bias,
    )


def _displacement_head(config: ModelConfig, num_outputs: int) -> nn.Module:
    return DisplacementHead(
        config.width,
        config.num_head_convs,
        _num_levels(config),
        shared=config.share_heads,
        num_outputs=2 * num_outputs,
        bias=config.displacement_bias,
    )


def _num_levels(config: ModelConfig) -> int:
    return 1 if config.pyramid == "none" else config.num_levels


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of each top-level part, and `total`."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    own = sum(p.numel() for p in model.parameters(recurse=False))
    return {key: value for key, value in {**counts, "own": own}.items() if value} | {
        "total": sum(counts.values()) + own
    }
