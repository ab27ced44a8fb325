"""A CLIP small enough for tests that open_clip lists beside its own: with tags that disagree, as ViT-B-16's do."""

import torch
from open_clip.model import CLIP
from open_clip.pretrained import _pcfg

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
TAGS = {
    "openai": _pcfg(quick_gelu=True),
    "ours": _pcfg(),
    "finetuned": _pcfg(quick_gelu=True),
    "grey": _pcfg(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", resize_mode="squash"),
}


def small_clip(*, quick_gelu: bool = False, layers: int = 2, std: float = 0.2) -> CLIP:
    """With weights large enough that GELU and QuickGELU are far apart."""
    torch.manual_seed(0)
    vision = ARCHITECTURE["vision_cfg"] | {"layers": layers}
    model = CLIP(**ARCHITECTURE | {"vision_cfg": vision}, quick_gelu=quick_gelu)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()
