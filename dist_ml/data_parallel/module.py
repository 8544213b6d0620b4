"""Any `nn.Module`, its gradients averaged over the ranks by the end of each backward pass: what a
user's own training loop wraps its model in.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.averaged_gradients import AveragedGradients
from dist_ml.data_parallel.join import Exchange, Join
from dist_ml.data_parallel.module_checks import require_alike, require_exchangeable
from dist_ml.data_parallel.same_values import equalise
from dist_ml.data_parallel.sparse_choice import sparse_config
from dist_ml.errors import CommunicationError, ConfigError


class DataParallel(torch.nn.Module):
    """`module` on every rank of `mesh`'s data axis (or of a communicator), trained on the mean of
    the ranks' gradients: `loss.backward()` leaves it in each `.grad`.

        model = DataParallel(MyModel(), mesh)
        for inputs, targets in my_batches:
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    All ranks begin with rank 0's parameters and buffers. Every rank must make as many synchronised
    backward passes, or all make them within `join`. What a rank's pass doesn't reach counts as
    zeros there; with `find_unused` parameters that no rank's reached keep no gradient, as if alone,
    for one byte a parameter more.

    `allreduce`, `overlap`, `bucket_bytes`, `wire`: as `dist_ml train allreduce=…` has them.
    `sparse`: a share of the elements, sent by top-k with error feedback (0.01: 1 %), or a whole
    `SparseConfig`. `average=False` leaves the sum, for losses that are already divided by the
    global batch. With `broadcast_buffers` rank 0's buffers (running statistics) are everybody's at
    each training forward pass.

    Words a step: the allreduce's for all gradients. Memory: one buffer as large as the gradients,
    which are views of it. `ConfigError` on all ranks where parameters or buffers differ among ranks
    in name, order, shape or dtype (compared by a hash; the first is named), or where a parameter is
    where MPI can't take it from. Collective.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        mesh: Mesh | Communicator,
        *,
        allreduce: str = "auto",
        wire: str = "fp32",
        overlap: str = "auto",
        bucket_bytes: int | None = None,
        sparse: float | SparseConfig | None = None,
        average: bool = True,
        find_unused: bool = False,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        self.module = module
        self.comm = mesh.comm("data") if isinstance(mesh, Mesh) else mesh
        self._find_unused, self._broadcast_buffers = find_unused, broadcast_buffers
        self._synchronises, self._under_way = True, False
        self._join: Join | None = None
        with raise_on_all_ranks(self.comm):
            dense = AllreduceConfig(allreduce, wire, overlap, bucket_bytes)  # type: ignore[arg-type]
            chosen = sparse_config(sparse)
            require_exchangeable(module)
            if any(isinstance(part, DataParallel) for part in module.modules()):
                raise ConfigError(
                    "the model is in DataParallel already, and its gradients would be averaged "
                    "twice; wrap it once"
                )
        require_alike(module, self.comm)
        self._groups: list[AveragedGradients] = []
        if self.comm.size > 1:
            equalise(chain(module.parameters(), module.buffers()), self.comm)
            for named in _by_dtype(module):
                # one group overlaps: two would cross on one communicator
                settings = dataclasses.replace(dense, overlap="none") if self._groups else dense
                self._groups.append(
                    AveragedGradients(named, self.comm, settings, chosen, average, self._begin)
                )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._under_way and torch._C._current_graph_task_id() < 0:  # not recomputed in one
            raise CommunicationError(
                "a backward pass of this model has raised before its end, so that ranks may hold "
                "different gradients; let that error end the job"
            )
        training = self.training and self._synchronises and torch.is_grad_enabled()
        if training and self._broadcast_buffers and self._groups:
            root = self._join.announce(Exchange.BUFFERS).first if self._join else 0
            equalise(self.module.buffers(), self.comm, root)
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside only add to each rank's own gradients; the first one after it
        exchanges what has gathered.
        """
        before, self._synchronises = self._synchronises, False
        try:
            yield
        finally:
            self._synchronises = before

    @contextmanager
    def join(self, update: Callable[[], object]) -> Iterator[None]:
        """Within the block ranks may make different numbers of passes. One that has come to its end
        takes part with zeros in those that others still make, and calls `update` after each, which
        must do what the loop does after a backward pass: so it ends with the parameters and the
        optimizer's state of the others.

            with model.join(optimizer.step):
                for inputs, targets in my_batches:
                    optimizer.zero_grad()
                    loss_of(model(inputs), targets).backward()
                    optimizer.step()

        A mean stays that over all ranks. Other collectives in the loop are not made up for.
        Collective; `CommunicationError` on all ranks where they make different exchanges.
        """
        if self.comm.size > 1:
            self._join = Join(self.comm, update)
        try:
            yield
            if self._join is not None:
                self._follow(self._join)
        finally:
            self._join = None

    def _follow(self, join: Join) -> None:
        """Take part in what the other ranks exchange, until all have run out."""
        while (announced := join.announce(Exchange.NONE)).exchange is not Exchange.NONE:
            if announced.exchange is Exchange.BUFFERS:
                equalise(self.module.buffers(), self.comm, announced.first)
                continue
            for parameter in self.module.parameters():
                parameter.grad = None
            for group in self._groups:
                group.begin()
            self._finish()
            join.update()

    def close(self) -> None:
        """End what exchanges in the background; the module and its weights stay. Collective."""
        for group in self._groups:
            group.close()

    def _begin(self) -> bool:
        """At each gradient that becomes final: is it to be exchanged? The first of a pass begins
        the exchange, which ends with the pass.
        """
        if self._synchronises and not self._under_way:
            self._under_way = True
            if self._join is not None:
                self._join.announce(Exchange.GRADIENTS)
            for group in self._groups:
                group.begin()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        return self._synchronises

    def _finish(self) -> None:
        self._under_way = False
        for group in self._groups:
            group.finish(self._find_unused)


def _by_dtype(module: torch.nn.Module) -> list[dict[str, torch.nn.Parameter]]:
    """What is trained, by dtype, the one with the most elements first."""
    groups: dict[torch.dtype, dict[str, torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(parameter.dtype, {})[name] = parameter
    sizes = {dtype: sum(p.numel() for p in named.values()) for dtype, named in groups.items()}
    return [groups[dtype] for dtype in sorted(groups, key=lambda dtype: -sizes[dtype])]
