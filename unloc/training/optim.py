"""Optimizer and learning rates (UnLoc §4.1.2)."""

import math

import torch

from unloc.config import OptimConfig
from unloc.model.build import EndToEnd
from unloc.model.unloc import UnLoc


def build_optimizer(model: UnLoc | EndToEnd, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW at peak rates: fusion and heads, then towers and their projections; biases and norms never decay."""
    of_towers = {id(parameter) for parameter in model.tower_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for lr, is_tower in ((config.lr, False), (config.tower_lr, True)):
        part = [parameter for parameter in trained if (id(parameter) in of_towers) == is_tower]
        for weight_decay, is_matrix in ((config.weight_decay, True), (0.0, False)):
            chosen = [parameter for parameter in part if (parameter.ndim > 1) == is_matrix]
            if chosen or not is_tower:
                groups.append({"params": chosen, "weight_decay": weight_decay, "lr": lr})
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(config: OptimConfig, steps_per_epoch: int, total_steps: int, step: int) -> float:
    """The factor on the peak rate at a step (from 0): linear warm-up from 0, then the schedule."""
    warmup = config.warmup_epochs * steps_per_epoch  # need not be a whole number of steps
    if step < warmup:
        return step / warmup  # 0 at the first step, as in the official code
    if config.schedule == "cosine":
        progress = (step - warmup) / max(total_steps - int(warmup), 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    if config.schedule == "step":
        return 0.1 ** sum(step > epoch * steps_per_epoch for epoch in config.step_epochs)
    return 1.0
