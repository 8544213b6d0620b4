"""The communicators of a grid."""

from dataclasses import dataclass

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm.plan import Plan


@dataclass(frozen=True)
class GridComm:
    """Whom rank (i, j, l) talks to: `along_n` shares its block of A, `along_m` its block of B,
    `along_k` its block of C.
    """

    along_m: Communicator
    along_n: Communicator
    along_k: Communicator

    def free(self) -> None:
        """Collective."""
        for comm in (self.along_m, self.along_n, self.along_k):
            comm.free()


def split(plan: Plan, comm: Communicator) -> GridComm | None:
    """The communicators of this rank; None for ranks beyond the grid. Collective over `comm`."""
    _, pn, pk = plan.grid
    if comm.rank >= plan.grid.size:
        for _ in range(3):
            comm.split(None)
        return None
    i, j, depth = plan.coordinates(comm.rank)
    along_m = comm.split(j * pk + depth, i)
    along_n = comm.split(i * pk + depth, j)
    along_k = comm.split(i * pn + j, depth)
    assert along_m is not None
    assert along_n is not None
    assert along_k is not None
    return GridComm(along_m, along_n, along_k)
