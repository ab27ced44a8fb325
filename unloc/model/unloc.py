"""UnLoc: frame tokens and text tokens in, relevance and displacements per point out (UnLoc §3, Figure 2)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unloc.config import MAX_TEXT_TOKENS, ModelConfig
from unloc.errors import ConfigError
from unloc.model.fusion import FusionLayer, Positions
from unloc.model.heads import ConvBlocks, PointHead
from unloc.model.pyramid import Encoder
from unloc.plugins import added

MAX_SEQUENCES = 256  # fused at once without gradients: more is not faster


@dataclass(frozen=True)
class Outputs:
    """The model's outputs per video and text. P points over all levels, T level-0 steps."""

    relevance: Float[Tensor, "batch texts points"]  # logits; for AS and CLS the points are the level-0 steps
    displacements: Float[Tensor, "batch texts points 2"] | None  # to start and end in strides; None for AS and CLS
    saliency: Float[Tensor, "batch texts time"] | None  # logits per level-0 step where there is a saliency head

    def at_least_float32(self) -> "Outputs":
        """For sums over points and for decoding, also where the model ran in bfloat16."""
        values = (self.relevance, self.displacements, self.saliency)
        return Outputs(*(None if v is None else v.to(torch.promote_types(v.dtype, torch.float32)) for v in values))

    def video_logits(self, frame_mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch texts"]:
        """Of CLS: the mean over the valid steps, which for a linear head is the logit of the mean token."""
        valid = frame_mask[:, None].to(self.relevance)
        return (self.relevance * valid).sum(-1) / valid.sum(-1)


class UnLoc(nn.Module):
    """Fusion, pyramid and heads over the tokens of two towers.

    `frame_dim` and `text_dim` are the channels of the tokens. Tokens as wide as the fusion enter as they are (CLIP's
    own projections then replace the official video and text projections) unless the config asks for a projection;
    others pass a linear layer without bias. `localizes` False builds no displacement head (AS). `num_classes` are the
    outputs of fusion `none`.
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
        self.config, width = config, config.width
        self.video_projection = self.text_projection = nn.Identity()
        if config.project_frames or frame_dim != width:
            self.video_projection = nn.Linear(frame_dim, width, bias=False)
        if config.fusion != "none" and (config.project_texts or text_dim != width):
            self.text_projection = nn.Linear(text_dim, width, bias=False)
        self.positions = Positions(config.positions, num_steps + MAX_TEXT_TOKENS, width)
        sizes = (width, config.num_heads, config.mlp_width, config.dropout)
        layers = [FusionLayer(*sizes) for _ in range(config.num_layers)]
        num_levels = 1 if config.pyramid == "none" or not localizes else config.num_levels  # AS labels the bottom one
        num_encoded = config.num_levels if config.pyramid == "fpn" else num_levels
        self.encoder = Encoder(config.pyramid, layers, width, num_encoded)
        num_outputs = num_classes if config.fusion == "none" else 1
        self.relevance_head = self.displacement_head = None
        self.shares_displacements = config.displacements == "shared" and localizes
        sizes, shared, bias = (width, config.num_head_convs, num_levels), config.share_heads, config.class_bias
        point_head = PointHead if config.head in ("conv", "linear") else added("heads", config.head)
        if config.fusion != "late" and config.head == "linear":
            self.relevance_head = ConvBlocks(width, 0, num_outputs, bias)
        elif config.fusion != "late":
            self.relevance_head = point_head(*sizes, shared=shared, num_outputs=num_outputs, bias=bias)
        if localizes:
            num_pairs, bias = 1 if config.displacements == "shared" else num_outputs, config.displacement_bias
            outputs = {"num_outputs": 2 * num_pairs, "bias": bias, "displacements": True}
            self.displacement_head = point_head(*sizes, shared=shared, **outputs)
        self.saliency_head = ConvBlocks(width, 1, 1, 0.0) if config.saliency_head else None
        if config.fusion == "late":  # CLIP's own initial temperature: 1 / 0.07
            self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07))
            self.logit_bias = nn.Parameter(torch.tensor(config.class_bias))

    def start_projections(self, starts: Mapping[str, Tensor]) -> None:
        """Initialise the projections of `frames` and `texts` with the towers' own (D, width), where these are given.

        Of several concatenated layers the last D channels are projected, the others start at 0. Raises ConfigError
        where a projection that the config asks for is not as wide as the tower's.
        """
        for kind, start in starts.items():
            layer = {"frames": self.video_projection, "texts": self.text_projection}[kind]
            if isinstance(layer, nn.Linear) and start.shape[1] == self.config.width:
                layer.weight.data.zero_()[:, -len(start) :] = start.T
            elif isinstance(layer, nn.Linear) and getattr(self.config, f"project_{kind}"):
                raise ConfigError(
                    f"model.width: {self.config.width}, but model.project_{kind} starts as the tower's own projection, "
                    f"to {start.shape[1]} channels; set model.width={start.shape[1]} or model.project_{kind}=false"
                )

    def tower_parameters(self) -> list[nn.Parameter]:
        """What trains at the towers' rate: projections that replace CLIP's own (as the official code)."""
        asked = (self.video_projection, self.config.project_frames), (self.text_projection, self.config.project_texts)
        return [parameter for layer, is_asked in asked if is_asked for parameter in layer.parameters()]

    def forward(
        self,
        frames: Float[Tensor, "batch time frame_dim"],
        frame_mask: Bool[Tensor, "batch time"] | None,
        texts: Float[Tensor, "texts tokens text_dim"],
        text_mask: Bool[Tensor, "texts tokens"] | None,
        *,
        pairing: str = "all",
    ) -> Outputs:
        """Outputs of every video with every text (pairing `all`), or of video b with text b (`own`: one text each).

        A mask of None means that all are valid, and is faster than a mask that is true everywhere. The frames are a
        multiple of the coarsest level's stride, the texts at least one, of at most `MAX_TEXT_TOKENS` tokens.
        """
        num_frames = frames.shape[1]
        frames = self.positions(self.video_projection(frames))
        if self.config.fusion == "none":  # (Table 2) a logit per class, and a pair of displacements for each or for all
            relevance, boxes, _ = self._heads(self.encoder(frames, frame_mask, num_frames))
            if boxes is not None:
                boxes = boxes.unflatten(-1, (-1, 2)).transpose(1, 2).expand(-1, relevance.shape[-1], -1, -1)
            return Outputs(relevance.transpose(1, 2), boxes, None)
        texts = self.text_projection(texts)
        if self.config.fusion == "late":
            return self._late(frames, frame_mask, _last_tokens(texts, text_mask), pairing)
        if self.config.text_tokens == "eos":
            texts, text_mask = _last_tokens(texts, text_mask)[:, None], None
        texts = self.positions(texts, num_frames)
        masks = None
        if frame_mask is not None or text_mask is not None:
            masks = tuple(
                tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
                for tokens, mask in ((frames, frame_mask), (texts, text_mask))
            )
        if pairing == "all":
            return self._every_pair(frames, texts, masks)
        mask = None if masks is None else torch.cat(masks, dim=1)
        return self._outputs(self.encoder(torch.cat([frames, texts], dim=1), mask, num_frames), len(frames))

    def _every_pair(self, frames: Tensor, texts: Tensor, masks: tuple[Tensor, Tensor] | None) -> Outputs:
        """All B x C sequences, so many texts at a time as memory allows (recomputed in the backward pass).

        The first layer's projections of a frame do not depend on the text: they are computed once.
        """
        projected, training = self.encoder.layers[0].project(frames), torch.is_grad_enabled()
        chunk = self.config.max_texts_in_flight or len(texts)
        if not training:
            chunk = min(chunk, max(1, MAX_SEQUENCES // len(frames)))
        parts, sums = [], []
        for start in range(0, len(texts), chunk):
            part = slice(start, start + chunk)
            arguments = (frames, projected, texts[part], None if masks is None else (masks[0], masks[1][part]))
            if training and chunk < len(texts):
                outputs, features = checkpoint(self._fuse_pairs, *arguments, use_reentrant=False)
            else:
                outputs, features = self._fuse_pairs(*arguments)
            parts.append((outputs.relevance, outputs.displacements, outputs.saliency))
            sums.append(features)
        joined = (None if column[0] is None else torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        relevance, displacements, saliency = joined
        if self.shares_displacements:
            means = [torch.stack(level).sum(0) / len(texts) for level in zip(*sums, strict=True)]
            displacements = self.displacement_head(means)[:, None].expand(-1, len(texts), -1, -1)
        return Outputs(relevance, displacements, saliency)

    def _fuse_pairs(
        self, frames: Tensor, projected: Tensor, texts: Tensor, masks: tuple[Tensor, Tensor] | None
    ) -> tuple[Outputs, list[Tensor]]:
        """Outputs of all videos with some texts, and where displacements are shared the features summed over these."""
        qkv = _paired(projected, self.encoder.layers[0].project(texts))
        mask = None if masks is None else _paired(*masks)
        levels = self.encoder(_paired(frames, texts), mask, frames.shape[1], qkv)
        if not self.shares_displacements:
            return self._outputs(levels, len(frames)), []
        sums = [level.unflatten(0, (len(frames), len(texts))).sum(1) for level in levels]
        return self._outputs(levels, len(frames), displacements=False), sums

    def _heads(self, levels: list[Tensor], *, displacements: bool = True) -> tuple[Tensor | None, ...]:
        """Relevance (S, P, outputs), displacements (S, P, 2 outputs) and saliency (S, T) of S sequences."""
        localizes = self.displacement_head is not None
        boxes = self.displacement_head(levels) if localizes and displacements else None
        scored = levels if localizes else levels[:1]
        relevance = None if self.relevance_head is None else self.relevance_head(scored)
        saliency = None if self.saliency_head is None else self.saliency_head(levels[:1]).squeeze(-1)
        return relevance, boxes, saliency

    def _outputs(self, levels: list[Tensor], videos: int, *, displacements: bool = True) -> Outputs:
        """Head outputs of sequences (videos x texts)."""
        relevance, boxes, saliency = self._heads(levels, displacements=displacements)
        found = (relevance.squeeze(-1), boxes, saliency)
        return Outputs(*(None if values is None else values.unflatten(0, (videos, -1)) for values in found))

    def _late(self, frames: Tensor, frame_mask: Tensor | None, texts: Tensor, pairing: str) -> Outputs:
        """Late fusion (Table 3): cosine of each point's feature and the text's EOS, with a learned scale and bias;
        displacements and saliency do not see the text.
        """
        levels = self.encoder(frames, frame_mask, frames.shape[1])
        _, *unseen = self._heads(levels)
        points = F.normalize(torch.cat(levels if unseen[0] is not None else levels[:1], dim=1), dim=-1)
        text = F.normalize(texts, dim=-1)
        text = text[:, None] if pairing == "own" else text.expand(len(points), -1, -1)
        relevance = self.logit_scale * text @ points.transpose(1, 2) + self.logit_bias
        count = relevance.shape[1]
        expanded = (None if one is None else one[:, None].expand(-1, count, *one.shape[1:]) for one in unseen)
        return Outputs(relevance, *expanded)


def _last_tokens(
    texts: Float[Tensor, "texts tokens width"], mask: Bool[Tensor, "texts tokens"] | None
) -> Float[Tensor, "texts width"]:
    """EOS of every text: its last valid token."""
    if mask is None:
        return texts[:, -1]
    return texts[torch.arange(len(texts), device=texts.device), mask.sum(dim=1) - 1]


def _paired(of_videos: Tensor, of_texts: Tensor) -> Tensor:
    """(B, T, ...) and (C, K, ...) as (B x C, T + K, ...): every video followed by every text."""
    videos = of_videos[:, None].expand(-1, len(of_texts), *of_videos.shape[1:])
    texts = of_texts[None].expand(len(of_videos), *of_texts.shape)
    return torch.cat([videos, texts], dim=2).flatten(0, 1)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of each part, those of a core behind towers without the core's name, and `total`."""
    counts = Counter()
    for name, parameter in model.named_parameters():
        part, is_part, _ = name.removeprefix("core.").partition(".")
        counts[part if is_part else "own"] += parameter.numel()
    return {**counts, "total": counts.total()}
