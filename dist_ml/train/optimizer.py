"""Torch's own optimizers and learning-rate schedules, by configuration."""

import math
from collections.abc import Callable, Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_ml.config.train import LRScheduleConfig, OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The fused kind, which makes one pass over the parameters and no temporary copies of them."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def build_lr_schedule(
    config: LRScheduleConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> LambdaLR:
    """A schedule over `num_steps` optimizer steps; call its `step` after each."""
    return LambdaLR(optimizer, rate_factor(config, num_steps))


def rate_factor(config: LRScheduleConfig, num_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step 0 … num_steps: linear warm-up, then constant or half
    a cosine.
    """
    warmup_steps = int(config.warmup_fraction * num_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if config.name == "constant":
            return 1.0
        progress = (step - warmup_steps) / (num_steps - warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return config.final_fraction + (1 - config.final_fraction) * cosine

    return factor
