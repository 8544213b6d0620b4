"""What each block of a model takes on this machine: measured, so that stages are cut by time."""

import time
from collections.abc import Mapping

import torch
from torch.func import functional_call

from dist_ml.models import BlockModel
from dist_ml.models.blocks import INPUTS, Block, bf16_products
from dist_ml.pipeline_parallel.stage_graph import Shape

_ROUNDS = 3  # after one that isn't counted


def measured_costs(
    model: BlockModel,
    shapes: Mapping[str, Shape],
    sample: torch.Tensor,
    num_samples: int,
    autocast: bool,
) -> list[float]:
    """Seconds that a forward and a backward pass of a micro-batch take, block by block, the least
    of a few; of a model on the meta device, `shapes` being those of its blocks' outputs.

    `sample` [1, ...]: one input; micro-batches of `num_samples` like it. Memory: one block at a
    time, with parameters, gradients and activations.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = sample.expand(num_samples, *sample.shape[1:]).contiguous()

    def made_by(source: str) -> torch.Tensor:
        if source == INPUTS:
            return inputs
        sizes, dtype = shapes[source]
        if not dtype.is_floating_point:
            return torch.zeros(num_samples, *sizes, dtype=dtype)
        values = torch.randn(num_samples, *sizes, dtype=dtype, generator=generator)
        return values.requires_grad_()

    model.context.clear()
    return [
        _seconds(block, [made_by(source) for source in block.sources], autocast, generator)
        for block in model.blocks()
    ]


def _seconds(
    block: Block, values: list[torch.Tensor], autocast: bool, generator: torch.Generator
) -> float:
    parameters = {
        name: (0.02 * torch.randn(p.shape, dtype=p.dtype, generator=generator)).requires_grad_()
        for name, p in block.module.named_parameters()
    }
    buffers = {name: torch.zeros_like(b, device="cpu") for name, b in block.module.named_buffers()}
    taken = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        # Blocks may overwrite what they take.
        taking = [value.clone() if value.requires_grad else value for value in values]
        with bf16_products(autocast):
            outputs = functional_call(block.module, {**parameters, **buffers}, tuple(taking))
        if outputs.requires_grad:
            outputs.backward(torch.ones_like(outputs))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
