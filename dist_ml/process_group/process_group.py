"""The `torch.distributed.ProcessGroup` on a communicator.

Collectives end before they return. Both spellings of the single-tensor collectives are there:
torch 2.13 calls `all_gather_single` what was `_allgather_base`.
"""

import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.node_staging import node_staging
from dist_ml.process_group.collectives import Collectives
from dist_ml.process_group.messages import Messages
from dist_ml.process_group.reductions import Reduction, reduction
from dist_ml.process_group.sparse import allreduce_sparse
from dist_ml.process_group.tensors import values, written
from dist_ml.process_group.work import TimeLimit, done

NAME = "dist_ml"
# Above this, gradients and the like, the family of allreduces is worth its set-up.
_LARGE_BYTES = 1 << 16
Tensors = Sequence[torch.Tensor]


class MpiProcessGroup(Collectives, Messages, dist.ProcessGroup):  # type: ignore[misc]
    """All collectives of one group of ranks.

    Calls of the thread that made it and of others (asynchronous checkpoints) move on communicators
    of their own, so that they may be under way at once. Large float32 and float64 sums go to
    `allreduce=auto`; half precision is summed in float32; AVG divides, PREMUL_SUM multiplies.
    Barriers and messages end with an error after `timeout`.
    """

    def __init__(self, comm: Communicator, timeout: timedelta) -> None:
        super().__init__(comm.rank, comm.size)  # type: ignore[call-arg]
        self.limit = TimeLimit(timeout, comm.transport.peers)
        self._main, self._thread = comm, threading.get_ident()
        other = comm.split(0)
        assert other is not None
        self._background = other
        self._large: Allreduce | None = None
        self._staged = False
        self._names: dict[str, str] = {}

    @property
    def comm(self) -> Communicator:  # type: ignore[override]
        """That of the calling thread."""
        return self._main if threading.get_ident() == self._thread else self._background

    def allreduce(  # type: ignore[override]  # torch's own overloads are never called
        self, tensors: Tensors, opts: Any = None
    ) -> dist.Work:
        op = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
        for tensor in tensors:
            if tensor.layout is not torch.strided:
                allreduce_sparse(tensor, op, self.comm)
                continue
            with written(tensor) as flat:
                self.reduce_into(flat, reduction(op, tensor.dtype))
        return done(list(tensors))

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> dist.Work:
        return self.allreduce(tensors, opts)

    def reduce_into(self, flat: torch.Tensor, how: Reduction) -> None:
        """All ranks' `flat`, reduced, in place."""
        if how.fold is not None:
            rows = torch.empty(self.size(), flat.numel(), dtype=flat.dtype)
            self.comm.allgather(flat, rows.view(-1), [flat.numel()] * self.size())
            flat.copy_(how.fold(rows))
            return
        if how.factor is not None:
            flat.mul_(how.factor)
        large = flat.numel() * flat.element_size() > _LARGE_BYTES
        full = flat.dtype in (torch.float32, torch.float64)
        if how.op in ("sum", "mean") and full and large and self.comm is self._main:
            self._family()(flat, how.op)
        else:
            self.comm.allreduce(flat, how.op)

    def barrier(self, opts: Any = None) -> dist.Work:
        """A sum that every rank must be there for: it can be looked at, and so has an end."""
        limit = opts.timeout if opts is not None else None
        self.limit.wait("barrier", self.comm.iallreduce(torch.zeros(1)), limit)
        return done([])

    def shutdown(self) -> None:
        """Give back what MPI has few of. Collective, except where an error is on its way: others
        may never come.
        """
        if self.limit.overdue or sys.exception() is not None:
            return
        if self._large is not None:
            self._large.free()
        if self._main.staging is not None:
            self._main.staging.free()
        self._main.free()  # and with it the communicators that were split from it

    # Torch keeps a group's name in its C++ backends, which there are none of here.
    def setGroupName(self, name: str) -> None:  # noqa: N802 - torch's spelling
        self._names["name"] = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._names.get("name", "")

    def setGroupDesc(self, description: str) -> None:  # noqa: N802
        self._names["description"] = description

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._names.get("description", "")

    group_name = property(getGroupName)
    group_desc = property(getGroupDesc)

    def getBackendName(self) -> str:  # noqa: N802 - torch's spelling
        return NAME

    def name(self) -> str:
        return NAME

    @property
    def _device_types(self) -> list[torch.device]:
        """Asked for by barriers and by torch's checkpoints."""
        return [torch.device("cpu")]

    def stage(self, num_bytes: int) -> None:
        """Before a gather or reduce-scatter of so many bytes in all: at the first large one, have
        them go through the node's memory where there is but one node. Collective.
        """
        if num_bytes > _LARGE_BYTES and not self._staged and self.comm is self._main:
            self._staged = True
            self._main.staging = node_staging(self._main)

    def _family(self) -> Allreduce:
        """Made at the first large sum, which all ranks come to. Collective."""
        if self._large is None:
            self._large = family.make("auto", self._main)
        return self._large

    def reduce(  # type: ignore[override]
        self, tensors: Tensors, opts: Any
    ) -> dist.Work:
        """To the root; the others' tensors stay as they were."""
        (tensor,) = tensors
        flat = values(tensor).clone()
        self.reduce_into(flat, reduction(opts.reduceOp, tensor.dtype))
        if self.rank() == opts.rootRank:
            with written(tensor) as own:
                own.copy_(flat)
        return done(list(tensors))
