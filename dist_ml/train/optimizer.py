"""Torch's own optimizers, and the learning rate of each step, by configuration."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from dist_ml.config.names import require_one_of
from dist_ml.config.train import LRScheduleConfig, OptimizerConfig

Parameters = Iterable[torch.nn.Parameter]


def _sgd(config: OptimizerConfig, parameters: Parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _adamw(config: OptimizerConfig, parameters: Parameters) -> torch.optim.Optimizer:
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


class OptimizerMember(NamedTuple):
    """How an optimizer is made, and the keys that it alone reads."""

    build: Callable[[OptimizerConfig, Parameters], torch.optim.Optimizer]
    reads: tuple[str, ...]


# A new optimizer is a function and an entry here.
OPTIMIZERS: dict[str, OptimizerMember] = {
    "sgd": OptimizerMember(_sgd, ("optimizer.momentum", "optimizer.nesterov")),
    "adamw": OptimizerMember(_adamw, ("optimizer.betas", "optimizer.eps")),
}


def build_optimizer(config: OptimizerConfig, parameters: Parameters) -> torch.optim.Optimizer:
    """The fused kind, which makes one pass over the parameters and no temporary copies of them."""
    require_one_of("optimizer.name", config.name, OPTIMIZERS)
    return OPTIMIZERS[config.name].build(config, parameters)


def _constant(_config: LRScheduleConfig, _progress: float) -> float:
    return 1.0


def _cosine(config: LRScheduleConfig, progress: float) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_fraction + (1 - config.final_fraction) * cosine


class LRScheduleMember(NamedTuple):
    """The factor on the rate at a progress of 0 … 1 after the warm-up, and the keys that it alone
    reads.
    """

    factor: Callable[[LRScheduleConfig, float], float]
    reads: tuple[str, ...] = ()


# A new learning-rate schedule is a function and an entry here.
LR_SCHEDULES: dict[str, LRScheduleMember] = {
    "constant": LRScheduleMember(_constant),
    "cosine": LRScheduleMember(_cosine, ("lr_schedule.final_fraction",)),
}


class LRSchedule:
    """Sets the learning rate of each step: the optimizer's first one times `factor(step)`.

    Torch's own warns where the first step of a run is left out.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer, self._factor = optimizer, factor
        self._first = [float(group["lr"]) for group in optimizer.param_groups]
        self._num_steps = 0
        self._set()

    def step(self) -> None:
        """To the rate of the next step."""
        self.go_to(self._num_steps + 1)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def go_to(self, num_steps: int) -> None:
        """To the rate of the step after so many."""
        self._num_steps = num_steps
        self._set()

    def _set(self) -> None:
        factor = self._factor(self._num_steps)
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * factor


def build_lr_schedule(
    config: LRScheduleConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> LRSchedule:
    """A schedule over `num_steps` optimizer steps; call its `step` after each."""
    return LRSchedule(optimizer, rate_factor(config, num_steps))


def rate_factor(config: LRScheduleConfig, num_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step 0 … num_steps: a linear warm-up, then what the member
    of `LR_SCHEDULES` says.
    """
    require_one_of("lr_schedule.name", config.name, LR_SCHEDULES)
    after_warmup = LR_SCHEDULES[config.name].factor
    warmup_steps = int(config.warmup_fraction * num_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return after_warmup(config, (step - warmup_steps) / (num_steps - warmup_steps))

    return factor
