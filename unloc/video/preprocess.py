"""From a decoded frame to the pixels a tower sees: open_clip's transform on uint8 tensors, and views of the frame.

The resize is bicubic with antialiasing on uint8, within two grey levels of PIL's at an eighth of its cost. Views are
pictures of a frame whose tokens a cache holds; training draws one per example:

    centre   the tower's own centre crop; always the first: evaluation and prediction read it
    flip     the centre crop mirrored
    cropN    a random crop of the frame with short side 8/7 of the tower's size, mirrored with probability 1/2; one
             choice per video, drawn from N and the file's content (as the official training: short side 256, crop 224)
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unloc.errors import TowerError

CLEARLY_MORE = 1.08  # measured with Pillow 13: the height is resized first from 1.10 times the width's shrinking on
CENTRE = ("centre",)
MARGIN = 8 / 7  # 256 for a crop of 224
VIEW_NAME = re.compile(r"centre|flip|crop(0|[1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """What a tower expects of its images."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # or bilinear
    resize_mode: str = "shortest"  # short side to image_size, then centre crop; squash: both sides to image_size

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear") or self.resize_mode not in ("shortest", "squash"):
            got = f"interpolation {self.interpolation!r} with resize_mode {self.resize_mode!r}"
            raise TowerError(f"preprocessing: got {got}, expected bicubic or bilinear with shortest or squash")


def resize_and_crop(image: np.ndarray, spec: PreprocessSpec) -> Tensor:
    """(H, W, 3) uint8 to (3, S, S) uint8. Stored pixels count as square, as in open_clip and all published features."""
    return F.center_crop(resize_for_crop(image, spec), [spec.image_size, spec.image_size])


def resize_for_crop(image: np.ndarray, spec: PreprocessSpec) -> Tensor:
    """(H, W, 3) uint8 to (3, H', W') uint8, from which the crop is taken."""
    pixels, size = torch.from_numpy(image).permute(2, 0, 1), spec.image_size
    (old_height, old_width), (height, width) = image.shape[:2], (size, size)
    if spec.resize_mode == "shortest" and old_height <= old_width:
        width = int(size * old_width / old_height)
    elif spec.resize_mode == "shortest":
        height = int(size * old_height / old_width)
    interpolation = InterpolationMode(spec.interpolation)
    if old_height * width > CLEARLY_MORE * old_width * height:
        # PIL rounds between two passes; torch always begins with the width, PIL with a height that shrinks more.
        pixels = F.resize(pixels, [height, old_width], interpolation=interpolation, antialias=True)
    return F.resize(pixels, [height, width], interpolation=interpolation, antialias=True)


def normalise(pixels: Tensor, spec: PreprocessSpec) -> Tensor:
    """(N, 3, S, S) uint8 to float32 on the same device: values / 255, minus mean, over std."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(3, 1, 1) * 255.0
    std = torch.tensor(spec.std, device=pixels.device).view(3, 1, 1) * 255.0
    return (pixels.float() - mean) / std


def make_views(image: np.ndarray, views: Sequence[str], spec: PreprocessSpec, content_sha256: str = "") -> Tensor:
    """(H, W, 3) uint8 to (views, 3, S, S) uint8; the hash of the file's content is needed where there are crops."""
    size, centre = spec.image_size, resize_and_crop(image, spec)
    has_crops = any(name.startswith("crop") for name in views)
    larger = resize_for_crop(image, replace(spec, image_size=round(size * MARGIN))) if has_crops else centre
    pictures = []
    for name in views:
        if name == "centre":
            pictures.append(centre)
        elif name == "flip":
            pictures.append(centre.flip(-1))
        else:
            seed = hashlib.sha256(f"{name} {content_sha256}".encode()).digest()
            down, right, mirrored = np.random.default_rng(list(seed)).random(3)
            top, left = round(down * (larger.shape[1] - size)), round(right * (larger.shape[2] - size))
            crop = larger[:, top : top + size, left : left + size]
            pictures.append(crop.flip(-1) if mirrored < 0.5 else crop)
    return torch.stack(pictures)
