"""The sum that every algorithm ends with: C = alpha (sum of products) + beta C, tile by tile."""

from dataclasses import dataclass

import torch

from dist_ml import partition
from dist_ml.comm.communicator import Communicator
from dist_ml.gemm.pieces import starts
from dist_ml.gemm.plan import Plan
from dist_ml.kernels.product import Product, sum_dtype


@dataclass(frozen=True)
class ProductSums:
    """C = alpha A B + beta C on this rank, to be summed tile by tile: `storage` is what the rank
    owns of C.
    """

    plan: Plan
    rank: int
    storage: torch.Tensor
    alpha: float
    beta: float
    product: Product

    def tile(self, row: int = 0, col: int = 0) -> "TileSum":
        """The sum of one tile of the rank's block of C, `row`-th along M and `col`-th along N. One
        at a time holds memory.
        """
        layout, parts = self.plan.layout_c, self.plan.reduce_parts
        counts, (_, _, depth) = layout.segment_counts(self.rank), self.plan.coordinates(self.rank)
        stored = starts(tuple(shares[depth] for shares in counts))
        rows, cols, _ = self.plan.block(self.rank)
        shape = (
            partition.block(rows.size, self.plan.tiles.tm, row).size,
            partition.block(cols.size, self.plan.tiles.tn, col).size,
        )
        segments = [layout.segment(row * parts + part, col) for part in range(parts)]
        shares = [
            self.storage[stored[segment] : stored[segment] + counts[segment][depth]]
            for segment in segments
        ]
        return TileSum(shape, shares, [counts[segment] for segment in segments], self)


class TileSum:
    """One tile of C = alpha (sum of products) + beta C: in C itself where that can be, else in a
    partial, reduced at the end.

    A tile is summed in place where pk = 1 and its dtype is the one products are summed in.
    Otherwise the partial (rows x cols, in the sum's dtype) is reduce-scattered over `along_k`, in
    the plan's row parts, so that a memory limit holds: part i leaves this rank `shares[i]` of C.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        shares: list[torch.Tensor],
        counts: list[tuple[int, ...]],
        whole: ProductSums,
    ) -> None:
        dtype = sum_dtype(whole.storage.dtype)
        self._shares, self._counts = shares, counts
        self._alpha, self._beta, self._product = whole.alpha, whole.beta, whole.product
        self._in_place = whole.plan.grid.pk == 1 and dtype == whole.storage.dtype
        self._target = shares[0].view(shape) if self._in_place else torch.empty(shape, dtype=dtype)
        self._next_beta = whole.beta if self._in_place else 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add one panel's products: a (m x w) times b (w x n)."""
        self._product(self._target, a, b, self._alpha, self._next_beta)
        self._next_beta = 1.0

    def finish(self, along_k: Communicator) -> None:
        """Leave every rank its share of the tile. Words received: (pk - 1) of its share."""
        if self._next_beta != 1.0:
            self._target.mul_(self._next_beta) if self._next_beta else self._target.zero_()
        if self._in_place:
            return
        parts = partition.blocks(self._target.shape[0], len(self._shares))
        for rows, share, counts in zip(parts, self._shares, self._counts, strict=True):
            self._store(share, self._reduce(along_k, self._target[rows.slice].view(-1), counts))

    def _reduce(
        self, along_k: Communicator, part: torch.Tensor, counts: tuple[int, ...]
    ) -> torch.Tensor:
        if along_k.size == 1:
            return part
        mine = torch.empty(counts[along_k.rank], dtype=part.dtype)
        along_k.reduce_scatter(part, mine, counts=counts)
        return mine

    def _store(self, share: torch.Tensor, product: torch.Tensor) -> None:
        if self._beta != 0.0:
            product.add_(share, alpha=self._beta)
        share.copy_(product)
