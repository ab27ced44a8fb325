"""Exact gradients of the image tower over more frames than memory holds at once: gradient replay."""

import torch
from torch import Tensor

from unloc.model.build import EndToEnd


def replay(
    model: EndToEnd,
    frames: Tensor,
    gradients: Tensor,
    chunk: int,
    *,
    share: float = 1.0,
    generator: torch.Generator | None = None,
    place: tuple[int, int] | None = None,
) -> None:
    """Add the image tower's gradients, given those (B, T, D) of the tokens of its frames (B, T, 3, S, S): exact ones,
    over more frames than memory holds at once (gradient replay).

    The tokens were computed in chunks without gradient. Each chunk passes the tower again, with gradient, and receives
    the gradients of its tokens. Their sum is the gradient of plain training, as the tower sees each frame alone and has
    no dropout and no batch statistics.

    With a `share` below 1 only that share of the chunks, drawn by the generator, passes again, each weighted by 1 /
    share: unbiased (ETAD). At least one chunk passes. Processes that train together draw from the chunks of all:
    `place` is the index of the first of these videos in the whole batch, and how many that has.
    """
    first, total = place or (0, len(frames))
    places = [(video, start) for video in range(-first, total - first) for start in range(0, frames.shape[1], chunk)]
    count = max(1, round(share * len(places)))
    chosen = torch.randperm(len(places), generator=generator)[:count].tolist() if share < 1 else range(len(places))
    own = range(len(frames))
    for video, start in (places[index] for index in chosen if places[index][0] in own):
        part = slice(start, start + chunk)
        tokens = model.image_tower(frames[video : video + 1, part], start)
        tokens.backward(gradients[video : video + 1, part] * (len(places) / count))
