"""Optimiser, schedule and clipping (spec §4.1)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from unloc.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over two groups: weights, and biases and norms, which are never decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(config: OptimConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The factor on the peak rate at each step (from 0): linear warm-up from 0, then the schedule.

    The first step has rate 0 with warm-up, as in the official code.
    """
    warmup = int(config.warmup_epochs * steps_per_epoch)
    drops = [epoch * steps_per_epoch for epoch in config.step_epochs]

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if config.schedule == "cosine":
            progress = (step - warmup) / max(total_steps - warmup, 1)
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        if config.schedule == "step":
            return 0.1 ** sum(step > drop for drop in drops)
        return 1.0

    return factor


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clip the global gradient norm (0: only measure it); returns the norm before clipping."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    limit = max_norm if max_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(parameters, limit))
