"""open_clip's image transform on uint8 tensors: short-side resize, centre crop, then the tower's mean and std.

The resize is bicubic with antialiasing on uint8, within two grey levels of PIL's, at an eighth of its cost.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unloc.errors import TowerError

CLEARLY_MORE = 1.08  # measured with Pillow 13: the height comes first at 1.10 times the width's shrinking, not at 1.06
INTERPOLATIONS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """What a tower expects of its images."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    """bicubic or bilinear."""
    resize_mode: str = "shortest"
    """shortest: short side to image_size, then centre crop; squash: both sides to image_size."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS or self.resize_mode not in ("shortest", "squash"):
            raise TowerError(
                f"preprocessing: got interpolation {self.interpolation!r} with resize_mode {self.resize_mode!r}, "
                "expected bicubic or bilinear with shortest or squash"
            )

    def to_dict(self) -> dict:
        """For the fingerprint."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}


def resize_and_crop(image: np.ndarray, spec: PreprocessSpec) -> Tensor:
    """(H, W, 3) uint8 to (3, S, S) uint8.

    Stored pixels are taken as square, as open_clip and all published features take them, whatever shape a player would
    give them.
    """
    return F.center_crop(resize_for_crop(image, spec), [spec.image_size, spec.image_size])


def resize_for_crop(image: np.ndarray, spec: PreprocessSpec) -> Tensor:
    """(H, W, 3) uint8 to (3, H', W') uint8, of which the crop is taken."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    height, width = _resized(*image.shape[:2], spec)
    if image.shape[0] * width > CLEARLY_MORE * image.shape[1] * height:
        # PIL rounds between two passes; torch always begins with the width, PIL with a height that shrinks more.
        pixels = _resize(pixels, height, image.shape[1], spec)
    return _resize(pixels, height, width, spec)


def _resized(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Height and width before the crop, rounded down as torchvision does."""
    size = spec.image_size
    if spec.resize_mode == "squash":
        return size, size
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def _resize(pixels: Tensor, height: int, width: int, spec: PreprocessSpec) -> Tensor:
    return F.resize(pixels, [height, width], interpolation=INTERPOLATIONS[spec.interpolation], antialias=True)


def normalise(pixels: Tensor, spec: PreprocessSpec) -> Tensor:
    """(N, 3, S, S) uint8 to float32 on the same device: values / 255, minus mean, over std."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(3, 1, 1) * 255.0
    std = torch.tensor(spec.std, device=pixels.device).view(3, 1, 1) * 255.0
    return (pixels.float() - mean) / std
