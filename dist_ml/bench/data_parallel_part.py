"""The ranks' part of `dist-ml bench data_parallel`: one user's loop on the same model in several
wrappers, in turn.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dist_ml.bench.user_models import USER_MODELS
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.module import DataParallel
from dist_ml.measure.compare import compare
from dist_ml.process_group.process_group import NAME
from dist_ml.process_group.registration import register

OURS, OVER_US, DDP, PLAIN = (
    "DataParallel",
    "ddp dist_ml",
    "ddp gloo",
    "plain PyTorch",
)  # plain: no exchange on any rank
_COMPARED_STEPS = 10


class Loop:
    """What a user writes: forward, backward, step, on samples of this rank."""

    def __init__(self, model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]):
        self._model, self._batches = model, batches
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self._steps = 0

    def step(self) -> torch.Tensor:
        inputs, targets = self._batches[self._steps % len(self._batches)]
        self._steps += 1
        self._optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self._model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step by candidate and round, and how far the losses of the first steps lie apart on
    any rank, relative.
    """
    model = USER_MODELS[arguments["model"]]
    torch.manual_seed(0)
    module = model.build()
    generator = torch.Generator().manual_seed(1 + comm.rank)
    batches = [model.batch(arguments["batch"], generator) for _ in range(4)]
    wrapped: dict[str, torch.nn.Module] = {
        OURS: DataParallel(copy.deepcopy(module), comm, find_unused=model.has_unused)
    }
    if comm.size > 1:
        register(comm)
        dist.init_process_group(NAME)
        for name, group in ((OVER_US, None), (DDP, dist.new_group(backend="gloo"))):
            wrapped[name] = torch.nn.parallel.DistributedDataParallel(
                copy.deepcopy(module),
                process_group=group,
                find_unused_parameters=model.has_unused,
                gradient_as_bucket_view=True,
            )
    wrapped[PLAIN] = module
    loops = {name: Loop(wrapper, batches) for name, wrapper in wrapped.items()}
    apart = _difference(comm, loops[OURS], loops[DDP if comm.size > 1 else PLAIN])
    steps = {name: loop.step for name, loop in loops.items()}
    seconds = compare(comm, steps, arguments["rounds"], repeats=arguments["steps"])
    count = sum(parameter.numel() for parameter in module.parameters())
    return {"seconds": seconds, "loss": apart, "parameters": count}


def _difference(comm: Communicator, ours: Loop, theirs: Loop) -> float:
    worst = np.zeros(1)
    for _ in range(_COMPARED_STEPS):
        mine, other = float(ours.step()), float(theirs.step())
        worst[0] = max(worst[0], abs(mine - other) / abs(other))
    comm.allreduce(worst, "max")
    return float(worst[0])
