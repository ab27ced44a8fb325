"""Clips as an image tower takes them, on uint8: the centre crop of `unloc extract`, or a random augmentation.

Training follows the official code: short side 256 of 224, scale jitter, crop, flip, RandAugment, each drawn once for
all frames of a clip. Deviations: it resizes as the tower's preprocessing does (official: always bilinear), Cutout's
square grows with the image (official: 80 pixels, of 224), and the centre crop sees all of the short side, as the towers
were trained and `unloc extract` does (official: 224 of 256).
"""

import re
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unloc.annotations.schema import Manifest
from unloc.config import AugmentConfig
from unloc.video.preprocess import MARGIN, PreprocessSpec, resize_and_crop

DIRECTION = re.compile(r"\b(left|right)(most|wards?|hand(ed)?)?\b|clockwise", re.IGNORECASE)
JITTER = (0.9, 1.33)
CUTOUT = 40 / 224  # half of the square's side, in sides of the image


class ClipTransform:
    """Clips (T, 3, H, W) to (T, 3, S, S) uint8: augmented with a generator, the centre crop without one."""

    def __init__(self, spec: PreprocessSpec, config: AugmentConfig, directed: Collection[str] = ()) -> None:
        """`directed`: the videos whose texts bear a direction (`directed_videos`)."""
        self.spec, self.config, self.directed = spec, config, directed

    def __call__(self, frames: Tensor, video_id: str, rng: np.random.Generator | None) -> Tensor:
        """The clip of a video."""
        if rng is None:
            return centre_crop(frames, self.spec)
        can_flip = self.config.flip_directed or video_id not in self.directed
        return augment(frames, self.spec, self.config, rng, can_flip=can_flip)


def directed_videos(manifest: Manifest) -> frozenset[str]:
    """The videos of which a query or a label has left, right or clockwise: their mirror image would be mislabelled."""
    texts = [*zip(manifest.queries["video_id"], manifest.queries["text"], strict=True)]
    texts += zip(manifest.instances["video_id"], manifest.instances["label"].str.replace("_", " "), strict=True)
    return frozenset(video_id for video_id, text in texts if DIRECTION.search(text))


def centre_crop(frames: Tensor, spec: PreprocessSpec) -> Tensor:
    """(T, 3, H, W) uint8 to (T, 3, S, S): what `unloc extract` makes of such frames."""
    return torch.stack([resize_and_crop(frame.permute(1, 2, 0).numpy(), spec) for frame in frames])


def augment(
    frames: Tensor, spec: PreprocessSpec, config: AugmentConfig, rng: np.random.Generator, *, can_flip: bool = True
) -> Tensor:
    """(T, 3, H, W) uint8 to (T, 3, S, S), the same draw for all frames."""
    size, larger, sides = spec.image_size, round(spec.image_size * MARGIN), np.array(frames.shape[-2:])
    sides = sides * larger / (sides if spec.resize_mode == "squash" else sides.min())
    factors = rng.uniform(*JITTER, 2) if config.scale_jitter else 1.0
    height, width = np.maximum(np.rint(sides * factors), size).astype(int).tolist()
    frames = F.resize(frames, [height, width], interpolation=InterpolationMode(spec.interpolation), antialias=True)
    top, left = rng.integers((height - size + 1, width - size + 1))
    frames = frames[..., top : top + size, left : left + size]
    mirrored = rng.random() < config.flip
    frames = frames.flip(-1) if mirrored and can_flip else frames
    return randaugment(frames, config.randaugment_layers, rng).contiguous()


def _over_clip(operation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An operation that depends on an image's statistics, on all frames as one tall image."""

    def apply(frames: Tensor) -> Tensor:
        tall = frames.transpose(0, 1).flatten(1, 2)
        return operation(tall).unflatten(1, (len(frames), -1)).transpose(0, 1)

    return apply


def raised_contrast(tall: Tensor) -> Tensor:
    """`F.adjust_contrast` by 1.9, with the mean of integers: that of floats depends on the number of threads."""
    grey = F.rgb_to_grayscale(tall)
    mean = (grey.sum(dtype=torch.int64).double() / grey.numel()).float()
    return (tall * 1.9).add_(mean, alpha=1 - 1.9).clamp_(0, 255).to(torch.uint8)


OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    _over_clip(F.autocontrast),
    _over_clip(F.equalize),
    F.invert,
    partial(F.posterize, bits=4),
    partial(F.adjust_saturation, saturation_factor=1.9),
    _over_clip(raised_contrast),
    partial(F.adjust_brightness, brightness_factor=1.9),
    partial(F.adjust_sharpness, sharpness_factor=1.9),
    lambda frames: torch.where(frames < 128, frames.clamp(max=145) + 110, frames),  # SolarizeAdd
)
"""On frames (T, 3, H, W), at magnitude 10. Also drawn: Cutout, and two that change nothing: identity, and Solarize,
whose threshold is then 256."""


def randaugment(frames: Tensor, layers: int, rng: np.random.Generator) -> Tensor:
    """RandAugment (T, 3, H, W) of magnitude 10: each layer one of 12 operations on all frames."""
    height, width = frames.shape[-2:]
    for chosen in rng.integers(len(OPERATIONS) + 3, size=layers).tolist():
        if chosen < len(OPERATIONS):
            frames = OPERATIONS[chosen](frames)
        elif chosen == len(OPERATIONS):
            (y, x), half = rng.integers((height, width)).tolist(), round(CUTOUT * height)
            frames = frames.clone()
            frames[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return frames
