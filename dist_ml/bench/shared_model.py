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


class Ddp:
    """The same model's code and samples under torch's DistributedDataParallel over gloo.

    hook: how torch's own communication hooks compress gradients (a name in `HOOKS`); None: fp32
    """

    def __init__(
        self,
        widths: Sequence[int],
        batch: int,
        lr: float,
        comm: Communicator,
        hook: str | None = None,
    ) -> None:
        if not torch.distributed.is_initialized():
            join_gloo(comm)
        model = MLP(widths, layers=WholeLayers(linear_factory(FALLBACK)))
        chosen = None if hook is None else HOOKS[hook]
        self._model = torch.nn.parallel.DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            bucket_cap_mb=None if chosen is None else chosen.bucket_megabytes,
        )
        if chosen is not None:
            self._model.register_comm_hook(*chosen.make())
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr)
        self._x, self._y = samples(widths, batch, comm.rank)

    def step(self) -> None:
        """Gradients, their mean over ranks, update."""
        self._optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self._model(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def step_alone(self) -> None:
        """The same without exchange: each rank's own gradients."""
        with self._model.no_sync():
            self.step()


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
