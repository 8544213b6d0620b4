"""A model whose passes take known times without a processor: stages that sleep, so that more ranks
than cores show a schedule's own time.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_ml.datasets.dataset import Batch
from dist_ml.models.blocks import Block, BlockModel, chain
from dist_ml.nn import backward_part

WIDTH = 8  # numbers of a sample between two stages


class _Sleep(torch.autograd.Function):
    """x + w, after a while; going back takes its own."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, seconds: tuple[float, float, float]
    ) -> torch.Tensor:
        ctx.seconds, ctx.needs_input = seconds, x.requires_grad
        time.sleep(seconds[0])
        return x + weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        part = backward_part.current()
        _, of_input, of_weight = ctx.seconds
        sleeps = of_input if ctx.needs_input and part != "weight" else 0.0
        sleeps += of_weight if part != "input" else 0.0
        time.sleep(sleeps)
        return gradient, None if part == "input" else gradient.sum(0), None


class SleepingBlock(nn.Module):
    """Sleeps `seconds`: forward, input part and weight part of the backward pass."""

    def __init__(self, seconds: tuple[float, float, float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))
        self._seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, WIDTH] -> [b, WIDTH]."""
        outputs: torch.Tensor = _Sleep.apply(x, self.weight, self._seconds)  # type: ignore[no-untyped-call]
        return outputs


class SleepingModel(BlockModel):
    """`num_blocks` blocks that sleep alike."""

    def __init__(self, num_blocks: int, seconds: tuple[float, float, float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SleepingBlock(seconds) for _ in range(num_blocks))
        self._blocks = chain([(f"layers.{i}", layer) for i, layer in enumerate(self.layers)])

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        for parameter in block.module.parameters():
            parameter.detach().zero_()


class OneSample:
    """Micro-batches of one sample of zeros each, whose loss is the sum of the outputs."""

    def load(self, m: int) -> Batch:  # noqa: ARG002
        zeros = torch.zeros(1, WIDTH)
        return Batch(zeros, zeros, np.zeros(1, np.int64), 1)

    def enter(self, m: int) -> None:
        pass

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool) -> torch.Tensor:  # noqa: ARG002
        return outputs.sum()
