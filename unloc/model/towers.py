"""Towers: open_clip's image and text encoders behind one small interface.

`toy` is the small tower shipped with the package; every other name and tag is open_clip's own (`ViT-B-16`, `openai`),
or a local weights file, or `none`. Image tokens are CLIP's projected, un-normalised embeddings, as the official code
uses them, or of another kind (`frame_tokens`); text tokens are all tokens after the final norm, projected or not.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from unloc.errors import TowerError
from unloc.model.clip_models import TOY_FOLDER, WeightSettings, activation_of, clip_model
from unloc.model.frame_tokens import CPU_BATCH, DTYPES, FrameTokens, frame_tokens, require_kind
from unloc.model.pretrained import pretrained_model

TEXT_BATCH = 256  # texts of one forward pass on a GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSpec:
    """What identifies a tower."""

    name: str
    """`toy` or open_clip's name."""
    pretrained: str
    """open_clip's tag, the name of a local file, `shipped`, or `none` (random weights, for smoke tests)."""
    weights_sha256: str
    """Hash over all tensors."""
    frame_dim: int
    """Channels of a frame token."""
    text_dim: int
    """Channels of a text token."""
    context_length: int
    """Longest text in tokens, BOS and EOS included."""
    frame_token: str = "cls"
    """cls or gap (`frame_tokens`)."""
    projected: bool = True
    """Frame tokens behind CLIP's projection."""
    num_layers: int = 1
    """The last so many layers side by side."""
    dtype: str = "float32"
    """What the image tower computes in; the text tower computes in float32."""
    activation: str = "gelu"
    """gelu or quick_gelu, of the transformers' MLPs."""
    like: str | None = None
    """Of a weights file: the tag whose activation and preprocessing it has, where the tags of the model disagree."""
    texts_projected: bool = True
    """Text tokens behind CLIP's projection."""
    batch: int = CPU_BATCH
    """Frames of one forward pass; another number may change the last bit of a token on a GPU."""

    def to_dict(self) -> dict:
        """For the fingerprint."""
        return asdict(self)


class Tower:
    """A frozen image and text encoder with its preprocessing constants."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        pretrained: str,
        tokenizer: open_clip.SimpleTokenizer,
        wanted: FrameTokens | None = None,
        like: str | None = None,
    ) -> None:
        """`wanted`: which tokens; None: CLIP's embeddings in float32. Raises TowerError where it has none such."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.wanted = tokenizer, wanted or FrameTokens()
        self.image_config = image_config(model)
        require_kind(model.visual, self.wanted, name)
        sha256 = weights_hash(model)  # of the weights as they came, whatever they are rounded to
        self.projections = own_projections(model, self.wanted)
        model.visual.to(DTYPES[self.wanted.dtype])
        self.spec = TowerSpec(
            name=name,
            pretrained=pretrained,
            weights_sha256=sha256,
            frame_dim=self._frame_dim(),
            text_dim=int(model.text_projection.shape[1 if self.wanted.texts_projected else 0]),
            context_length=int(model.context_length),
            frame_token=self.wanted.kind,
            projected=self.wanted.projected,
            num_layers=self.wanted.num_layers,
            dtype=self.wanted.dtype,
            activation=activation_of(model),
            like=like,
            texts_projected=self.wanted.texts_projected,
            batch=self.wanted.batch,
        )

    @torch.inference_mode()
    def _frame_dim(self) -> int:
        if self.wanted.is_embedding:
            return int(self.model.visual.output_dim)
        size = self.image_config["image_size"]
        return frame_tokens(self.model.visual, torch.zeros(1, 3, size, size, dtype=self._dtype), self.wanted).shape[1]

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.wanted.dtype]

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised float32 images to (N, D) float32 tokens.

        Runs in batches of a fixed size, the last padded: equal images give equal bits whatever stands beside them.
        """
        tokens, batch = [], self.wanted.batch
        for start in range(0, len(images), batch):
            part = images[start : start + batch].to(self._dtype)
            padded = torch.cat([part, part.new_zeros(batch - len(part), *part.shape[1:])])
            tokens.append(frame_tokens(self.model.visual, padded, self.wanted)[: len(part)])
        return torch.cat(tokens).float()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> list[Tensor]:
        """All valid tokens (K, D) of each text, from BOS to EOS, float32. Too long texts keep their EOS.

        Attention is causal, so what follows EOS changes nothing: a CPU encodes each text alone at its own length, a GPU
        full batches of the context length, the last one padded.
        """
        if not texts:
            return []
        ids = self.tokenizer(texts, context_length=self.spec.context_length)
        lengths = (ids.argmax(dim=-1) + 1).tolist()  # EOS has the highest id
        device = self.model.text_projection.device
        if device.type == "cpu":
            rows = zip(ids, lengths, strict=True)
            return [self._text_tokens(row[None, :length])[0].float() for row, length in rows]
        padded = torch.cat([ids, ids[:1].expand(-len(ids) % TEXT_BATCH, -1)]).to(device)
        tokens = torch.cat([self._text_tokens(part).float().cpu() for part in padded.split(TEXT_BATCH)])
        return [row[:length] for row, length in zip(tokens, lengths, strict=False)]

    def _text_tokens(self, ids: Tensor) -> Tensor:
        """All tokens after the final norm, projected if wanted: open_clip's encode_text before it picks EOS."""
        model = self.model
        tokens = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
        tokens = model.transformer(tokens, attn_mask=model.attn_mask[: ids.shape[1], : ids.shape[1]])
        tokens = model.ln_final(tokens)
        return tokens @ model.text_projection if self.wanted.texts_projected else tokens


def own_projections(model: nn.Module, wanted: FrameTokens) -> dict[str, np.ndarray]:
    """CLIP's own projections (D, width) of the tokens that are wanted before them: `frames`, `texts`.

    The frames of a residual network have none: attention pools its embedding.
    """
    found, visual = {}, model.visual
    if not wanted.projected and isinstance(visual, VisionTransformer):
        found["frames"] = visual.proj
    if not wanted.texts_projected:
        found["texts"] = model.text_projection
    return {kind: weight.detach().float().cpu().numpy() for kind, weight in found.items()}


def image_config(model: nn.Module) -> dict:
    """image_size, mean, std, interpolation and resize_mode that open_clip states for the model."""
    stated = open_clip.get_model_preprocess_cfg(model)
    size = model.visual.image_size
    return {
        "image_size": int(size[0] if isinstance(size, tuple | list) else size),
        "mean": tuple(stated.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": tuple(stated.get("std") or open_clip.OPENAI_DATASET_STD),
        "interpolation": stated.get("interpolation", "bicubic"),
        "resize_mode": stated.get("resize_mode", "shortest"),
    }


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_tower(
    name: str, pretrained: str | None = None, wanted: FrameTokens | None = None, *, like: str | None = None
) -> Tower:
    """The tower of that name with its weights (`pretrained_model`); `wanted`: which tokens (None: CLIP's embeddings).

    Raises TowerError as `pretrained_model`, and where the model has no such tokens.
    """
    if name == "toy":
        return _load_toy(pretrained, wanted, like)
    model, stated, like = pretrained_model(name, pretrained, like)
    return Tower(model, name, stated, open_clip.get_tokenizer(name), wanted, like)


def _load_toy(pretrained: str | None, wanted: FrameTokens | None, like: str | None) -> Tower:
    if pretrained not in (None, "shipped"):
        raise TowerError(f"--tower toy: ships its own weights; got --pretrained {pretrained!r}, leave it out")
    if like is not None:
        raise TowerError(f"--tower toy: ships its own settings; got --like {like!r}, leave it out")
    weights = TOY_FOLDER / "weights.safetensors"
    if not weights.is_file():
        raise TowerError(f"--tower toy: {weights} is not here; the installation is incomplete, reinstall unloc")
    model = clip_model("toy", WeightSettings())
    model.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in load_file(weights).items()})
    tokenizer = open_clip.SimpleTokenizer(context_length=int(model.context_length))
    return Tower(model, "toy", "shipped", tokenizer, wanted)
