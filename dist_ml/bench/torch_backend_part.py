"""The ranks' part of `dist-ml bench torch_backend`: one MLP under torch's own wrappers, over gloo
and over our backend in turn, and in our trainer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from dist_ml.bench.shared_model import Ddp, Hook, SharedModel, Wrapped, torch_mlp
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm_hooks import SparseState, sparse_hook
from dist_ml.data_parallel.dense_reducer import DenseReducer
from dist_ml.data_parallel.gradient_exchange import choose_overlap
from dist_ml.measure.compare import compare
from dist_ml.process_group.process_group import NAME
from dist_ml.process_group.registration import register

TRAINER, SPARSE = "trainer", "ddp dist_ml, top-k"
DDP, DDP_GLOO = "ddp dist_ml", "ddp gloo"
FSDP2, FSDP2_GLOO = "fsdp2 dist_ml", "fsdp2 gloo"
LIKE_GLOO = {DDP: DDP_GLOO, FSDP2: FSDP2_GLOO}  # whose losses must be the same
_LEARNING_RATE = 1e-3
_COMPARED_STEPS = 5
_SETTLING_STEPS = 3  # of top-k: one that is dense, one that measures the links, one that connects


class Fsdp2(Wrapped):
    """The same model's code and samples under torch's `fully_shard`, each layer by itself."""

    def __init__(
        self,
        widths: Sequence[int],
        batch: int,
        lr: float,
        rank: int,
        group: dist.ProcessGroup,
        sums: bool,
    ) -> None:
        """`sums`: gradients are summed and then divided, as gloo has it: its average is a sum."""
        mesh = DeviceMesh.from_group(group, "cpu")
        model = torch_mlp(widths)
        for module in (*model.layers, model):
            fully_shard(module, mesh=mesh).set_force_sum_reduction_for_comms(sums)
        super().__init__(model, widths, batch, lr, rank)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step by candidate and round, and how far the losses of the first steps lie from
    those over gloo on any rank, relative.
    """
    register(comm)
    dist.init_process_group(NAME)
    steps = _steps(comm, arguments)
    apart = {
        name: _difference(comm, steps[name], steps[gloo])
        for name, gloo in LIKE_GLOO.items()
        if name in steps and gloo in steps
    }
    for _ in range(_SETTLING_STEPS if SPARSE in steps else 0):
        steps[SPARSE]()
    return {
        "seconds": compare(comm, steps, arguments["rounds"], repeats=arguments["steps"]),
        "apart": apart,
    }


def _steps(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    gloo = dist.new_group(backend="gloo")
    ours = dist.group.WORLD
    assert ours is not None
    what = arguments["widths"], arguments["batch"], _LEARNING_RATE
    make: dict[str, Callable[[], Callable[[], Any]]] = {
        TRAINER: lambda: _trainer(comm, arguments["widths"], arguments["batch"]),
        DDP: lambda: Ddp(*what, comm).step,
        DDP_GLOO: lambda: Ddp(*what, comm, group=gloo).step,
        FSDP2: lambda: Fsdp2(*what, comm.rank, ours, sums=False).step,
        FSDP2_GLOO: lambda: Fsdp2(*what, comm.rank, gloo, sums=True).step,
        SPARSE: lambda: Ddp(*what, comm, _top_k(arguments["density"])).step,
    }
    return {name: make[name]() for name in arguments["candidates"]}


def _trainer(comm: Communicator, widths: Sequence[int], batch: int) -> Callable[[], Any]:
    """As `dist-ml train allreduce=auto` has it."""
    allreduce = family.make("auto", comm)
    shared = SharedModel(widths, batch, "torch", _LEARNING_RATE, comm, allreduce.allocate)
    reducer = DenseReducer(shared.gradients, allreduce, choose_overlap("auto", comm))
    return lambda: shared.step(reducer)


def _top_k(density: float) -> Hook:
    return Hook(lambda: (SparseState(density), sparse_hook))


def _difference(
    comm: Communicator, step: Callable[[], torch.Tensor], gloo: Callable[[], torch.Tensor]
) -> float:
    worst = np.zeros(1)
    for _ in range(_COMPARED_STEPS):
        mine, other = float(step()), float(gloo())
        worst[0] = max(worst[0], abs(mine - other) / abs(other))
    comm.allreduce(worst, "max")
    return float(worst[0])
