"""Optimizer, schedule and clipping (UnLoc §4.1.2 and the official configurations)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from unloc.config import OptimConfig
from unloc.model.build import EndToEnd
from unloc.model.unloc import UnLoc


def build_optimizer(model: UnLoc | EndToEnd, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW, each group at its peak rate: fusion and heads first, then towers and their projections.

    Biases and norms are groups of their own, which are never decayed.
    """
    of_towers = {id(parameter) for parameter in model.tower_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for lr, is_tower in ((config.lr, False), (config.tower_lr, True)):
        part = [parameter for parameter in trained if (id(parameter) in of_towers) == is_tower]
        for weight_decay, chosen in (
            (config.weight_decay, [parameter for parameter in part if parameter.ndim > 1]),
            (0.0, [parameter for parameter in part if parameter.ndim <= 1]),
        ):
            if chosen or not is_tower:
                groups.append({"params": chosen, "weight_decay": weight_decay, "lr": lr})
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(config: OptimConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The factor on the peak rate at each step (from 0): linear warm-up from 0, then the schedule.

    With warm-up the first step has rate 0, as in the official code; the warm-up need not be a whole number of steps.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    drops = [epoch * steps_per_epoch for epoch in config.step_epochs]

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if config.schedule == "cosine":
            progress = (step - warmup) / max(total_steps - int(warmup), 1)
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
