"""What an allreduce is compared with, all on the ranks of one world: our family, mpi4py's own,
gloo, and the memory's limit.
"""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed

from dist_ml.comm import mpi
from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.process_group.rendezvous import meeting_place

Call = Callable[[], None]

GLOO = "gloo"
# mpi4py's own Allreduce in place, which is what "native" stands for where others are compared with
# it
RAW = "mpi"
# ours for a tensor in ordinary memory, which is copied into the node's memory and back
ORDINARY = "shared_memory, any tensor"
LIMIT = "limit"  # each rank reads and writes as many floats in place, alone
_GLOO_SECONDS = 60.0


class Candidates:
    """Makes calls that each reduce `n` float32 in place over `comm`. Collective; to be closed."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._made: list[Allreduce] = []
        self._gloo = False

    def call(self, name: str, n: int) -> Call:
        """The candidate called `name`, on a buffer of its own that has been written to. Sums of
        zeros stay zeros.
        """
        if name == LIMIT:
            own = torch.ones(n)
            return lambda: _scale(own)
        if name == RAW:
            return mpi.raw_allreduce(self._comm, torch.ones(n).mul_(0.0).numpy())
        if name == GLOO:
            self._start_gloo()
            x = torch.ones(n).mul_(0.0)
            return lambda: torch.distributed.all_reduce(x)
        algorithm, _, wire = ("shared_memory" if name == ORDINARY else name).partition(":")
        reduce = family.make(algorithm, self._comm, wire or "fp32")  # type: ignore[arg-type]
        self._made.append(reduce)
        if name == ORDINARY:
            buffer = torch.ones(n).mul_(0.0)
        else:
            buffer = reduce.allocate(n, torch.float32).mul_(0.0)
        return lambda: reduce(buffer)

    def free(self) -> None:
        """Give back what the calls made so far hold; they can't be made any more. Collective."""
        for reduce in self._made:
            reduce.free()
        self._made.clear()

    def close(self) -> None:
        self.free()
        if self._gloo:
            torch.distributed.destroy_process_group()

    def _start_gloo(self) -> None:
        if self._gloo:
            return
        join_gloo(self._comm)
        self._gloo = True


def _scale(x: torch.Tensor) -> None:
    x.mul_(1.0)


def join_gloo(comm: Communicator) -> None:
    """Gloo beside MPI: its ranks meet at a port of rank 0's host. Collective; ends with
    `destroy_process_group`.
    """
    address, port = meeting_place(comm)
    torch.distributed.init_process_group(
        GLOO,
        init_method=f"tcp://{address}:{port}",
        rank=comm.rank,
        world_size=comm.size,
        timeout=timedelta(seconds=_GLOO_SECONDS),
    )
