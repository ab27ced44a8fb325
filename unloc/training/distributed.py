"""What several processes share, so that N of them give the loss and gradients of one with the whole batch.

Each process fuses its own videos with the texts of all (as in the official code) and divides its losses by normalisers
averaged over the processes; `average` then averages gradients. Officially TAL and AS use their own normalisers.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from unloc.examples.batches import Batch

LONGEST_WAIT = timedelta(days=7)  # for the main process, which validates; one that is lost ends the wait at once


@dataclass(frozen=True)
class Texts:
    """The texts that a step pairs with the videos of this process."""

    tokens: Tensor  # (C, K, D), or (C, K) ids for a live tower
    mask: Tensor  # (C, K) true where valid; a padded text has no valid token
    owner_mask: Tensor  # (V, T) frame masks of the videos the texts come from, all processes' in order
    first_own: int  # index of this process's first text
    model_mask: Tensor | None  # `mask` as the model takes it: None where all are valid


def gathered_texts(batch: Batch, *, own_only: bool = False) -> Texts:
    """The texts of all processes in the order of their ranks, or this one's own alone. Nothing trainable is before them
    (a live tower encodes what was gathered), so no gradient is sent.
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


def process_rank() -> int:
    """The number of this process among them; 0 is the main one, which validates and writes."""
    return dist.get_rank() if process_count() > 1 else 0


def process_mean(value: Tensor) -> Tensor:
    """The mean over all processes, without gradient."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / process_count()


def average(model: nn.Module, values: dict[str, Tensor], is_stopping: bool) -> tuple[dict[str, Tensor], bool]:
    """Average the gradients in the parameters and some values over all processes; is any of them stopping? One
    all-reduce after all backward passes: DistributedDataParallel would see only one of them (`training.replay`). A
    parameter without a gradient in every process keeps none.
    """
    if process_count() == 1:
        return values, is_stopping
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flags = torch.tensor([is_stopping, *(parameter.grad is not None for parameter in trained)], dtype=torch.int32)
    dist.all_reduce(flags)
    is_stopping, *has_gradient = flags.bool().tolist()
    trained = [parameter for parameter, is_used in zip(trained, has_gradient, strict=True) if is_used]
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    parts = [*(value.float() for value in values.values()), *gradients]
    flat = torch.cat([part.detach().flatten() for part in parts])
    dist.all_reduce(flat)
    means = (flat / process_count()).split([part.numel() for part in parts])
    for parameter, mean in zip(trained, means[len(values) :], strict=True):
        parameter.grad = mean.view_as(parameter)
    return {key: mean[0] for key, mean in zip(values, means, strict=False)}, is_stopping


def from_main(value: Any) -> Any:
    """The main process's value, waiting for it as long as a validation may take."""
    if process_count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=_patient_group())
    return values[0]


def from_all(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks."""
    values = [value] * process_count()
    if process_count() > 1:
        dist.all_gather_object(values, value, group=_patient_group())
    return values


def copy_from_main(model: nn.Module) -> None:
    """Give all processes the main one's weights."""
    if process_count() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


@cache
def _patient_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


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
