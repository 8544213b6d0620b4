"""A plan: everything about one multiplication that can be known before it runs. A value, for any
number of ranks, without MPI.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dist_ml import partition
from dist_ml.gemm import bounds
from dist_ml.gemm.grid import (
    ONE_TILE,
    Grid,
    Tiles,
    panel_bytes,
    partial_bytes,
    reduce_bytes,
)
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.partition import Range


class Moved(NamedTuple):
    """Words over one rank's boundary, and messages out, as the traffic ledger counts them."""

    sent: int
    received: int
    messages: int


@dataclass(frozen=True)
class Plan:
    """C (m x n) = op(A) (m x k) op(B) (k x n) by one algorithm: grid, layouts, steps, and what they
    cost.

    `steps` is how many panels each rank's part of K is gathered in; `reduce_parts`, in how many row
    parts C is reduced where grid.pk > 1; `buffers`, how many panels are held at a time; `tiles`,
    how many tiles of its block of C a rank computes one after the other, all of that for each.
    """

    algorithm: str
    shape: ProductShape
    grid: Grid
    layout_a: Layout
    layout_b: Layout
    layout_c: Layout
    steps: int = 1
    reduce_parts: int = 1
    buffers: int = 1
    tiles: Tiles = ONE_TILE

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(i, j, l) of a rank in the grid."""
        i, rest = divmod(rank, self.grid.pn * self.grid.pk)
        return (i, *divmod(rest, self.grid.pk))

    def block(self, rank: int) -> tuple[Range, Range, Range]:
        """The ranges of M, N and K whose products the rank computes; empty for idle ranks."""
        sides = self.shape.m, self.shape.n, self.shape.k
        if rank >= self.grid.size:
            return Range(0, 0), Range(0, 0), Range(0, 0)
        blocks = [
            partition.block(n, p, at)
            for n, p, at in zip(sides, self.grid, self.coordinates(rank), strict=True)
        ]
        return blocks[0], blocks[1], blocks[2]

    def panels(self, rank: int) -> list[Range]:
        """The parts of the rank's range of K, one a step; the same on all ranks that share it."""
        k = self.block(rank)[2]
        return [
            Range(k.start + part.start, k.start + part.stop)
            for part in partition.blocks(k.size, self.steps)
        ]

    def moved(self, rank: int) -> Moved:
        """What `rank` sends and receives, exactly: what the ledger shows afterwards."""
        if rank >= self.grid.size:
            return Moved(0, 0, 0)
        rows, cols, depth = (r.size for r in self.block(rank))
        a, b, c = (
            layout.num_words(rank) for layout in (self.layout_a, self.layout_b, self.layout_c)
        )
        pm, pn, pk = self.grid
        tm, tn = self.tiles
        received = (rows * depth - a) * tn + (depth * cols - b) * tm + c * (pk - 1)
        sent = a * (pn - 1) * tn + b * (pm - 1) * tm + (rows * cols - c)
        return Moved(sent, received, self._messages(rank))

    def _messages(self, rank: int) -> int:  # noqa: ARG002 - other plans' ranks differ
        pm, pn, pk = self.grid
        return (
            (self.steps * (pn - 1 + pm - 1) + self.reduce_parts * (pk - 1))
            * self.tiles.tm
            * self.tiles.tn
        )

    @property
    def words(self) -> int:
        """Words received by the most loaded rank: of `representative_ranks`."""
        return max(self.moved(rank).received for rank in self.representative_ranks())

    @property
    def messages(self) -> int:
        return max(self.moved(rank).messages for rank in self.representative_ranks())

    @property
    def shard_words(self) -> int:
        """The words of A, B and C that the most loaded rank owns."""
        layouts = self.layout_a, self.layout_b, self.layout_c
        return max(
            sum(layout.num_words(rank) for layout in layouts)
            for rank in self.representative_ranks()
        )

    @property
    def working_bytes(self) -> int:
        """The memory that a rank needs besides its shards: what the memory limit is
        about.
        """
        width = max((part.size for part in self.panels(0)), default=0)
        panels = panel_bytes(
            self.shape, self.grid.pm, self.grid.pn, width, self.buffers, *self.tiles
        )
        partial = partial_bytes(self.shape, *self.grid, *self.tiles)
        return int(
            panels + partial + reduce_bytes(self.shape, *self.grid, self.reduce_parts, *self.tiles)
        )

    @property
    def peak_bytes(self) -> int:
        """Shards and working memory together."""
        return self.shard_words * self.shape.word_bytes + self.working_bytes

    @property
    def bound_words(self) -> float:
        """The tight bound on words received when memory is no limit."""
        p = self.shape
        return bounds.memory_independent(p.m, p.n, p.k, p.ranks)

    @property
    def limited_bound_words(self) -> float | None:
        """COSMA's bound with the memory limit as its S; None without a limit."""
        p = self.shape
        return (
            None
            if not p.memory
            else bounds.limited_memory(p.m, p.n, p.k, p.ranks, p.memory / p.word_bytes)
        )

    def flops(self, rank: int) -> int:
        rows, cols, depth = (r.size for r in self.block(rank))
        return 2 * rows * cols * depth

    def representative_ranks(self) -> list[int]:
        """All ranks of a small grid; the corners and the middle of a large one, among whom are the
        most loaded.
        """
        if self.grid.size <= 64:
            return list(range(self.grid.size))
        sides = [sorted({0, p // 2, p - 1}) for p in self.grid]
        return [
            (i * self.grid.pn + j) * self.grid.pk + k
            for i in sides[0]
            for j in sides[1]
            for k in sides[2]
        ]
