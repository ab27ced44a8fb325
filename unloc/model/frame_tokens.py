"""Which vector of an image tower stands for a frame: kind, projection, number of layers, and the precision of it all.

The plain choice is CLIP's image embedding, projected and un-normalised. Beside it (spec §1.2): `gap`, the mean of the
patch tokens of a transformer without class token; tokens before CLIP's projection; and those of the last k layers, each
after the last norm, side by side, the last layer last (what R2-Tuning calls the last-k layers).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from unloc.errors import InputError, TowerError

KINDS = ("cls", "gap")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")  # instructions that multiply bfloat16 faster than float32


CPU_BATCH, GPU_BATCH = 16, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTokens:
    """How a tower is asked for its tokens."""

    kind: str = "cls"
    """cls: the class token; gap: the mean of the patch tokens."""
    projected: bool = True
    """Behind CLIP's own projection."""
    num_layers: int = 1
    """The last so many layers side by side."""
    dtype: str = "float32"
    """Of the image tower's weights and activations: float32 or bfloat16."""
    batch: int = CPU_BATCH
    """Frames of one forward pass, always: the last one is padded, so that a token does not depend on its neighbours."""
    texts_projected: bool = True
    """Text tokens behind CLIP's own projection."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--frame-token: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.num_layers < 1:
            raise InputError(f"--last-k: got {self.num_layers}, expected at least 1 layer")
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype: got {self.dtype!r}, expected auto, {' or '.join(DTYPES)}")

    @property
    def is_embedding(self) -> bool:
        """True where the token is CLIP's image embedding."""
        return self.kind == "cls" and self.projected and self.num_layers == 1


def resolve_dtype(name: str) -> str:
    """`auto` as the dtype that it is on this machine: bfloat16 where its multiplication is fast, else float32.

    Of a machine with a GPU the GPU counts. By facts of the hardware and not by trial: the dtype stands in the
    fingerprint and must not change from run to run.
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if any(capabilities.get(key) for key in FAST_BFLOAT16) else "float32"


def require_kind(visual: nn.Module, wanted: FrameTokens, name: str) -> None:
    """Raises TowerError where an image tower has no tokens of that kind."""
    if wanted.is_embedding:
        return
    if isinstance(visual, ModifiedResNet):
        if wanted.kind != "gap" or wanted.projected or wanted.num_layers > 5:
            raise TowerError(
                f"--tower {name}: a residual network has its embedding, or --frame-token gap --no-projection of its "
                "last 1 to 5 stages"
            )
    elif not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.final_ln_after_pool:
        raise TowerError(f"--tower {name}: pools in its own way; only its embedding can be had, a plain ViT has more")
    elif wanted.num_layers > len(visual.transformer.resblocks):
        raise TowerError(f"--last-k: got {wanted.num_layers}, {name} has {len(visual.transformer.resblocks)} layers")


def frame_tokens(
    visual: nn.Module, images: Float[Tensor, "frames 3 height width"], wanted: FrameTokens
) -> Float[Tensor, "frames dim"]:
    """Tokens of normalised images, un-normalised."""
    if wanted.is_embedding:
        return visual(images)
    if isinstance(visual, ModifiedResNet):
        stages = visual.forward_intermediates(images, indices=wanted.num_layers, intermediates_only=True)
        return torch.cat([stage.mean(dim=(2, 3)) for stage in stages["image_intermediates"]], dim=-1)
    tokens, positions = visual.conv1(images).flatten(2).transpose(1, 2), visual.positional_embedding
    if wanted.kind == "cls":
        tokens = torch.cat([visual.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1)
    else:
        positions = positions[1:]
    _, layers = visual.transformer.forward_intermediates(visual.ln_pre(tokens + positions), indices=wanted.num_layers)
    normed = [visual.ln_post(layer) for layer in layers]
    chosen = [layer[:, 0] if wanted.kind == "cls" else layer.mean(dim=1) for layer in normed]
    return torch.cat([token @ visual.proj if wanted.projected else token for token in chosen], dim=-1)
