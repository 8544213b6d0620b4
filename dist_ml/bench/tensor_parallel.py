"""An MLP under torch's own tensor parallelism: DTensor over gloo, beside MPI."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from dist_ml.bench.candidates import join_gloo
from dist_ml.comm.communicator import Communicator


def tensor_parallel_mlp(
    comm: Communicator,
    widths: Sequence[int],
    weights: Mapping[str, torch.Tensor],
    sharded_rows: bool = False,
) -> nn.Module:
    """Linear layers with ReLU between them, cut in pairs: outputs of one, inputs of the next.

    `weights`: of the whole model, as `dist_ml.models.MLP` names them, on all ranks. With
    `sharded_rows` activations between pairs are cut along the samples (torch's sequence parallel
    way), else whole. Samples and outputs are whole on every rank. Collective.
    """
    if not torch.distributed.is_initialized():
        join_gloo(comm)
    model = plain_mlp(widths, weights)
    mesh = init_device_mesh("cpu", (comm.size,))
    number = len(widths) - 1
    plan: dict[str, ParallelStyle] = {}
    for i in range(number):
        rows = Shard(0) if sharded_rows else Replicate()
        if i % 2 == 0:
            out = Replicate() if i == number - 1 else Shard(-1)
            style: Any = ColwiseParallel(
                input_layouts=Replicate() if i == 0 else rows, output_layouts=out
            )
        else:
            style = RowwiseParallel(output_layouts=Replicate() if i == number - 1 else rows)
        plan[str(2 * i)] = style
    parallelized: nn.Module = parallelize_module(model, mesh, plan)
    return parallelized


def plain_mlp(widths: Sequence[int], weights: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The whole model; `weights` are copied."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs)
        layer.weight = nn.Parameter(weights[f"layers.{i}.weight"].clone())
        layer.bias = nn.Parameter(weights[f"layers.{i}.bias"].clone())
        layers += [layer, nn.ReLU()]  # DTensor's outputs are views, which can't be overwritten
    return nn.Sequential(*layers[:-1])


def sgd_step(
    model: nn.Module, lr: float, next_batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]
) -> Callable[[], float]:
    """One step of torch's fused SGD on the next batch: its loss before the update.

    DTensor has no fused SGD, so that this rank's parts are updated as the tensors that they are.
    """
    parameters = list(model.parameters())
    parts = [nn.Parameter(_part(parameter.detach(), parameter)) for parameter in parameters]
    optimizer = torch.optim.SGD(parts, lr, fused=True)
    loss_function = nn.CrossEntropyLoss()

    def step() -> float:
        inputs, targets = next_batch()
        model.zero_grad(set_to_none=True)
        loss = loss_function(model(inputs), targets)
        loss.backward()
        for part, parameter in zip(parts, parameters, strict=True):
            assert parameter.grad is not None
            part.grad = _part(parameter.grad, parameter)
        optimizer.step()
        return float(loss.item())

    return step


def _part(x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `x`, which lies as `parameter` does, in the same memory."""
    if not isinstance(x, DTensor):
        return x
    assert isinstance(parameter, DTensor)
    return x.redistribute(placements=parameter.placements).to_local()
