"""What several processes share, so that N of them give the loss and gradients of one with the whole batch.

Each process fuses its own videos with the texts of all (as in the official code) and divides its losses by normalisers
averaged over the processes; DistributedDataParallel averages gradients. Officially TAL and AS use their own.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from unloc.examples.batches import Batch


@dataclass(frozen=True)
class Texts:
    """The texts that a step pairs with the videos of this process."""

    tokens: Tensor
    """(C, K, D), or (C, K) ids for a live tower."""
    mask: Tensor
    """(C, K) true where valid; a padded text has no valid token."""
    owner_mask: Tensor
    """(V, T) frame masks of the videos the texts come from, all processes' in order."""
    first_own: int
    """Index of this process's first text."""
    model_mask: Tensor | None
    """`mask` as the model takes it: None where all are valid."""


def gathered_texts(batch: Batch, *, own_only: bool = False) -> Texts:
    """The texts of all processes in the order of their ranks, or this one's own alone.

    Nothing trainable is before them (a live tower encodes what was gathered), so no gradient is sent.
    """
    if own_only or process_count() == 1:
        return Texts(batch.texts, batch.text_mask, batch.frame_mask, 0, batch.model_masks[1])
    tokens, counts = _gather(batch.texts)
    mask, _ = _gather(batch.text_mask)
    owner_mask, _ = _gather(batch.frame_mask)
    return Texts(tokens, mask, owner_mask, sum(counts[: dist.get_rank()]), mask)


def process_count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_mean(value: Tensor) -> Tensor:
    """The mean over all processes, without gradient."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / process_count()


def _gather(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Rows of all processes one after another, and how many each has. Second axes are padded to the longest."""
    shape = torch.tensor(rows.shape[:2], device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(process_count())]
    dist.all_gather(shapes, shape)
    count, length = torch.stack(shapes).amax(0).tolist()
    padding = [0, 0] * (rows.ndim - 2) + [0, length - rows.shape[1], 0, count - rows.shape[0]]
    padded = F.pad(rows.to(torch.uint8) if rows.dtype == torch.bool else rows, padding)
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded.contiguous())
    counts = [int(shape[0]) for shape in shapes]
    gathered = torch.cat([part[:own] for part, own in zip(parts, counts, strict=True)])
    return gathered.to(rows.dtype), counts
