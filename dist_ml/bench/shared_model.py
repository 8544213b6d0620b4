"""One model trained by several ways to exchange gradients in turn, on the same samples, with DDP
over gloo beside them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from dist_ml.bench.candidates import join_gloo
from dist_ml.comm.communicator import Communicator
from dist_ml.counter_random import stream, uniform
from dist_ml.data_parallel.gradients import Allocator, FlatGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.kernels.tuner import FALLBACK
from dist_ml.models import MLP, WholeLayers
from dist_ml.nn.tuning import linear_factory, tune


class SharedModel:
    """Training steps of one MLP on `batch` samples a rank, with a reducer that can be swapped.

    There is one copy of parameters and gradients. Plain SGD; samples are fixed and random, those of
    each rank its own.
    """

    def __init__(
        self,
        widths: Sequence[int],
        batch: int,
        kernel: str,
        lr: float,
        comm: Communicator,
        allocate: Allocator | None = None,
    ) -> None:
        self.comm = comm
        self.model = MLP(widths, layers=WholeLayers(linear_factory(kernel)))
        self.gradients = FlatGradients(self.model.parameters(), 1, allocate)
        tune(self.model, {batch}, comm)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr)
        self._x, self._y = samples(widths, batch, comm.rank)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.loss = float("nan")

    def step(self, reducer: GradientReducer) -> None:
        """One step: gradients, their sum over ranks, update."""
        reducer.begin()
        loss = torch.nn.functional.cross_entropy(self.model(self._x), self._y) / self.comm.size
        self.gradients.slots[0] += loss.detach()
        reducer.start()
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss = reducer.finish().slots[0]
        self._optimizer.step()


class Wrapped:
    """Steps of a model in one of torch's wrappers, on this rank's samples."""

    def __init__(
        self, model: torch.nn.Module, widths: Sequence[int], batch: int, lr: float, rank: int
    ) -> None:
        self._model = model
        self._optimizer = torch.optim.SGD(model.parameters(), lr)
        self._x, self._y = samples(widths, batch, rank)

    def step(self) -> torch.Tensor:
        """Gradients, their mean over ranks, update; this rank's loss before it."""
        self._optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self._model(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()


class Ddp(Wrapped):
    """The same model's code and samples under torch's DistributedDataParallel.

    group: over which backend; None: the default one, which is gloo unless there is one already.
    hook: how communication hooks compress gradients; None: fp32
    """

    def __init__(
        self,
        widths: Sequence[int],
        batch: int,
        lr: float,
        comm: Communicator,
        hook: "Hook | None" = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        if not torch.distributed.is_initialized():
            join_gloo(comm)
        self._ddp = torch.nn.parallel.DistributedDataParallel(
            torch_mlp(widths),
            process_group=group,
            gradient_as_bucket_view=True,
            bucket_cap_mb=None if hook is None else hook.bucket_megabytes,
        )
        if hook is not None:
            self._ddp.register_comm_hook(*hook.make())
        super().__init__(self._ddp, widths, batch, lr, comm.rank)

    def step_alone(self) -> None:
        """The same without exchange: each rank's own gradients."""
        with self._ddp.no_sync():
            self.step()


def torch_mlp(widths: Sequence[int]) -> MLP:
    """The model of `SharedModel`, on torch's own kernels."""
    return MLP(widths, layers=WholeLayers(linear_factory(FALLBACK)))


def _power_sgd() -> tuple[Any, Any]:
    """Of rank 1, its default, from the second step on, the earliest that it can."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return state, powerSGD_hook.powerSGD_hook


class Hook(NamedTuple):
    """One of torch's ways to compress what DDP sends."""

    make: Callable[[], tuple[Any, Any]]  # (state, hook) as `register_comm_hook` takes them
    bucket_megabytes: int | None = None  # None: DDP's own


# Torch refuses its bf16 hook without NCCL. PowerSGD reduces several times a bucket, as each of its
# reductions ends; of two buckets under way the ranks would start these in different orders, and
# wait for each other, so that it gets one bucket.
HOOKS: dict[str, Hook] = {
    "fp16": Hook(lambda: (None, default_hooks.fp16_compress_hook)),
    "PowerSGD": Hook(_power_sgd, bucket_megabytes=1 << 20),
}


def samples(widths: Sequence[int], batch: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`batch` random samples of one rank, and their classes."""
    x = uniform(stream("sparse bench samples", rank), np.arange(batch * widths[0])) - 0.5
    y = uniform(stream("sparse bench classes", rank), np.arange(batch)) * widths[-1]
    return torch.from_numpy(x.astype(np.float32).reshape(batch, -1)), torch.from_numpy(
        y.astype(np.int64)
    )
