"""The communicators of a grid, and the sum that every algorithm ends with."""

from dataclasses import dataclass

import torch

from dist_ml import partition
from dist_ml.comm.communicator import Communicator
from dist_ml.gemm.kernel.product import Product, sum_dtype
from dist_ml.gemm.layout import starts
from dist_ml.gemm.plan import Plan


@dataclass(frozen=True)
class GridComm:
    """Whom rank (i, j, l) talks to: `along_n` shares its block of A, `along_m` its block of B, `along_k` its block of C."""

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


class Sum:
    """C = alpha (sum of products) + beta C: in C itself where that is possible, else in a partial that is reduced at the end.

    C is summed in place where pk = 1 and its dtype is the one products are summed in. Otherwise the partial (m x n of this rank's
    block, in the sum's dtype) is reduce-scattered over `along_k`, in the plan's row parts, so that a memory limit holds.
    """

    def __init__(self, plan: Plan, rank: int, c: torch.Tensor, alpha: float, beta: float, product: Product) -> None:
        rows, cols, _ = plan.block(rank)
        self._plan, self._rank, self._c = plan, rank, c
        self._alpha, self._beta, self._product = alpha, beta, product
        self._in_place = plan.grid.pk == 1 and sum_dtype(c.dtype) == c.dtype
        self._target = (
            c.view(rows.size, cols.size) if self._in_place else torch.empty(rows.size, cols.size, dtype=sum_dtype(c.dtype))
        )
        self._next_beta = beta if self._in_place else 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add one panel's products: a (m x w) times b (w x n)."""
        self._product(self._target, a, b, self._alpha, self._next_beta)
        self._next_beta = 1.0

    def finish(self, along_k: Communicator) -> None:
        """Leave every rank its share of C. Words received: (pk - 1) of its share."""
        if self._next_beta != 1.0:
            self._target.mul_(self._next_beta) if self._next_beta else self._target.zero_()
        if self._in_place:
            return
        stored = 0
        parts = partition.blocks(self._target.shape[0], self._plan.reduce_parts)
        for rows, counts in zip(parts, self._plan.layout_c.segment_counts(self._rank), strict=True):
            part, own = self._target[rows.slice].view(-1), counts[along_k.rank]
            mine = self._reduce(along_k, part, counts)
            self._store(self._c[stored : stored + own], mine)
            stored += own

    def _reduce(self, along_k: Communicator, part: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        if along_k.size == 1:
            return part
        mine = torch.empty(counts[along_k.rank], dtype=part.dtype)
        along_k.reduce_scatter(part, mine, counts=counts)
        return mine

    def _store(self, share: torch.Tensor, product: torch.Tensor) -> None:
        if self._beta != 0.0:
            product.add_(share, alpha=self._beta)
        share.copy_(product)


def own_segments(storage: torch.Tensor, counts: tuple[tuple[int, ...], ...], owner: int) -> list[torch.Tensor]:
    """The storage of a dealt-out block, cut into this owner's share of each segment."""
    sizes = tuple(shares[owner] for shares in counts)
    return [storage[start : start + size] for start, size in zip(starts(sizes), sizes, strict=True)]
