"""Views of a frame: the pictures of it whose tokens a cache holds, side by side.

    centre   the tower's own centre crop; always the first: evaluation and prediction read it
    flip     the centre crop mirrored
    cropN    short side 8/7 of the tower's size, a crop at random, mirrored with probability 1/2; one choice per video,
             drawn from N and the content of the file (official training: short side 256, crop 224, flip; spec §4.5)

Training draws one view per example, so that it keeps this augmentation though frames are encoded once.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unloc.errors import InputError
from unloc.video.preprocess import PreprocessSpec, resize_and_crop, resize_for_crop

CENTRE = ("centre",)
MARGIN = 8 / 7  # 256 for a crop of 224
_KNOWN = re.compile(r"centre|flip|crop(0|[1-9][0-9]*)")


def require_views(views: Sequence[str]) -> None:
    """Raises InputError where there is no such view, one stands twice, or the first is not the centre."""
    for name in views:
        if not _KNOWN.fullmatch(name):
            raise InputError(f"--views: got {name!r}, expected centre, flip or crop followed by a number (crop0)")
    if not views or views[0] != "centre":
        raise InputError(f"--views: got {','.join(views)!r}, the first must be centre: evaluation reads it")
    if len(set(views)) < len(views):
        raise InputError(f"--views: got {','.join(views)!r}, each view counts once; give crops other numbers")


def has_crops(views: Sequence[str]) -> bool:
    """True where a view depends on the content of the file."""
    return any(name.startswith("crop") for name in views)


class ViewMaker:
    """The views of one video's frames; `content_sha256` of its file is needed where there are crops."""

    def __init__(self, views: Sequence[str], spec: PreprocessSpec, content_sha256: str = "") -> None:
        self.views, self.spec, self.content = tuple(views), spec, content_sha256

    def make(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (views, 3, S, S) uint8."""
        centre = resize_and_crop(image, self.spec)
        if self.views == CENTRE:
            return centre[None]
        larger = self._larger(image) if has_crops(self.views) else centre
        return torch.stack([self._view(name, centre, larger) for name in self.views])

    def _larger(self, image: np.ndarray) -> Tensor:
        return resize_for_crop(image, replace(self.spec, image_size=round(self.spec.image_size * MARGIN)))

    def _view(self, name: str, centre: Tensor, larger: Tensor) -> Tensor:
        if name == "centre":
            return centre
        if name == "flip":
            return centre.flip(-1)
        seed = hashlib.sha256(f"{name} {self.content}".encode()).digest()
        down, right, mirrored = np.random.default_rng(list(seed)).random(3)
        size = self.spec.image_size
        top, left = (
            round(share * (length - size)) for share, length in zip((down, right), larger.shape[1:], strict=True)
        )
        crop = larger[:, top : top + size, left : left + size]
        return crop.flip(-1) if mirrored < 0.5 else crop
