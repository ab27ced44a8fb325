"""Towers: open_clip's image and text encoders behind one small interface.

`toy` is the small tower shipped with the package; every other name and tag is open_clip's own (`ViT-B-16`, `openai`),
or a local weights file. Image tokens are CLIP's projected, un-normalised embeddings, as the official code uses them
(spec §1.2), or of another kind (`frame_tokens`); text tokens are all tokens after final norm and projection (§1.3).
"""

import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import huggingface_hub
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn

from unloc.errors import TowerError
from unloc.model.frame_tokens import DTYPES, FrameTokens, frame_tokens, require_kind

TOY_FOLDER = Path(__file__).parent.parent / "synth" / "toy_tower"
BATCH = 16  # images per forward pass, always: a token must not depend on what else is in its batch


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSpec:
    """What identifies a tower."""

    name: str
    """`toy` or open_clip's name."""
    pretrained: str
    """open_clip's tag, the name of a local file, `shipped`, or `none` (random weights, for tests)."""
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
    ) -> None:
        """`wanted`: which frame tokens; None: CLIP's embedding in float32. Raises TowerError where it has none such."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.wanted = tokenizer, wanted or FrameTokens()
        self.image_config = image_config(model)
        require_kind(model.visual, self.wanted, name)
        sha256 = weights_hash(model)  # of the weights as they came, whatever they are rounded to
        model.visual.to(DTYPES[self.wanted.dtype])
        self.spec = TowerSpec(
            name=name,
            pretrained=pretrained,
            weights_sha256=sha256,
            frame_dim=self._frame_dim(),
            text_dim=int(model.text_projection.shape[1]),
            context_length=int(model.context_length),
            frame_token=self.wanted.kind,
            projected=self.wanted.projected,
            num_layers=self.wanted.num_layers,
            dtype=self.wanted.dtype,
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
        tokens = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH].to(self._dtype)
            padded = torch.cat([part, part.new_zeros(BATCH - len(part), *part.shape[1:])])
            tokens.append(frame_tokens(self.model.visual, padded, self.wanted)[: len(part)])
        return torch.cat(tokens).float()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> list[Tensor]:
        """All valid tokens (K, D) of each text, from BOS to EOS, float32. Too long texts keep their EOS."""
        encoded = []
        for text in texts:  # one by one, for the same reason as BATCH
            ids = self.tokenizer([text], context_length=self.spec.context_length).to(self.model.text_projection.device)
            last = int(ids.argmax(dim=-1))  # EOS has the highest id; attention is causal: what follows is not needed
            encoded.append(self._text_tokens(ids[:, : last + 1])[0].float().cpu())
        return encoded

    def _text_tokens(self, ids: Tensor) -> Tensor:
        """All tokens after the final norm and the projection: open_clip's encode_text before it picks EOS."""
        model = self.model
        tokens = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
        tokens = model.transformer(tokens, attn_mask=model.attn_mask[: ids.shape[1], : ids.shape[1]])
        return model.ln_final(tokens) @ model.text_projection


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


def load_tower(name: str, pretrained: str | None = None, wanted: FrameTokens | None = None) -> Tower:
    """The tower of that name with its weights; `wanted`: which frame tokens (None: CLIP's embedding in float32).

    Raises TowerError where the name is unknown, the weights are neither on disk nor to be downloaded, or the model is
    not a CLIP with a text transformer of its own, or has no such frame tokens.
    """
    if name == "toy":
        return _load_toy(pretrained, wanted)
    if name not in open_clip.list_models():
        known = ", ".join(open_clip.list_models()[:4])
        raise TowerError(f"--tower: {name!r} is neither `toy` nor a model of open_clip (such as {known}, ViT-B-16)")
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6]) or "none listed"
        raise TowerError(f"--tower {name}: give --pretrained: one of open_clip's tags ({tags}) or a weights file")
    model = _pretrained_model(name, pretrained)
    if not isinstance(model, CLIP):
        raise TowerError(f"--tower {name}: open_clip builds a {type(model).__name__}; only its CLIP class is supported")
    tag = Path(pretrained).name if Path(pretrained).is_file() else pretrained
    return Tower(model, name, tag, open_clip.get_tokenizer(name), wanted)


def _pretrained_model(name: str, pretrained: str) -> nn.Module:
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_file = Path(pretrained).is_file()
    if not is_file and pretrained not in tags:
        raise TowerError(
            f"--pretrained: {pretrained!r} is neither a file nor a tag of {name} "
            f"(its tags: {', '.join(tags[:6]) or 'none'}, …)"
        )
    if not is_file and not _hub_reachable():
        # Without this the hub's client retries for most of a minute before it looks at its own disk.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        with _quiet_downloads():
            return open_clip.create_model(name, pretrained=pretrained, weights_only=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        words = " ".join(str(error).split())[:160]
        if is_file:
            raise TowerError(f"--pretrained {pretrained}: not weights of {name} ({words})") from None
        raise TowerError(
            f"--tower {name} --pretrained {pretrained}: weights not on disk and not to be downloaded ({words}); "
            "ways out: connect to the internet once, copy open_clip's download cache from another machine, "
            "or give a local weights file: --pretrained FILE"
        ) from None


def _hub_reachable() -> bool:
    """True where the weights' host has an address from here."""
    try:
        socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """open_clip logs a failed download before it raises; the error says it all."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _load_toy(pretrained: str | None, wanted: FrameTokens | None) -> Tower:
    if pretrained not in (None, "shipped"):
        raise TowerError(f"--tower toy: ships its own weights; got --pretrained {pretrained!r}, leave it out")
    config_path, weights = TOY_FOLDER / "config.json", TOY_FOLDER / "weights.safetensors"
    if not (config_path.is_file() and weights.is_file()):
        raise TowerError(f"--tower toy: {weights} is not here; the installation is incomplete, reinstall unloc")
    return tower_from_files(config_path, weights, name="toy", pretrained="shipped", wanted=wanted)


def tower_from_files(
    config_path: Path, weights: Path | None, *, name: str, pretrained: str, wanted: FrameTokens | None = None
) -> Tower:
    """A CLIP of open_clip's classes from its JSON config and a safetensors file (None: random weights, for tests)."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    open_clip.model.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    if weights is not None:
        tensors = load_file(weights)
        model.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in tensors.items()})
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return Tower(model, name, pretrained, tokenizer, wanted)
