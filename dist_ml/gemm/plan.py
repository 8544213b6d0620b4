"""A plan: everything about one multiplication that can be known before it runs. A value, for any
number of ranks, without MPI.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dist_ml import partition
from dist_ml.gemm import bounds
from dist_ml.gemm.grid import (
    ONE_TILE,
    Grid,
    Problem,
    Tiles,
    panel_bytes,
    partial_bytes,
    reduce_bytes,
)
from dist_ml.gemm.layout import Layout
from dist_ml.measure.cost_model import CostModel
from dist_ml.partition import Range

# Nothing hides the arrival of the first panels. So where panels travel ahead, an owner's first is
# this part of the full width, and each next one twice as wide as the last.
FIRST_PANEL = 8


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
    problem: Problem
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
        sides = self.problem.m, self.problem.n, self.problem.k
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
        """Words received by the most loaded rank: over all ranks of small grids, over the grid's
        corners of large ones.
        """
        return max(self.moved(rank).received for rank in self._telling_ranks())

    @property
    def messages(self) -> int:
        return max(self.moved(rank).messages for rank in self._telling_ranks())

    @property
    def shard_words(self) -> int:
        """The words of A, B and C that the most loaded rank owns."""
        layouts = self.layout_a, self.layout_b, self.layout_c
        return max(
            sum(layout.num_words(rank) for layout in layouts) for rank in self._telling_ranks()
        )

    @property
    def working_bytes(self) -> int:
        """The memory that a rank needs besides its shards: what the problem's memory limit is
        about.
        """
        width = max((part.size for part in self.panels(0)), default=0)
        panels = panel_bytes(
            self.problem, self.grid.pm, self.grid.pn, width, self.buffers, *self.tiles
        )
        partial = partial_bytes(self.problem, *self.grid, *self.tiles)
        return int(
            panels
            + partial
            + reduce_bytes(self.problem, *self.grid, self.reduce_parts, *self.tiles)
        )

    @property
    def peak_bytes(self) -> int:
        """Shards and working memory together."""
        return self.shard_words * self.problem.word_bytes + self.working_bytes

    @property
    def bound_words(self) -> float:
        """The tight bound on words received when memory is no limit."""
        p = self.problem
        return bounds.memory_independent(p.m, p.n, p.k, p.ranks)

    @property
    def limited_bound_words(self) -> float | None:
        """COSMA's bound with the memory limit as its S; None without a limit."""
        p = self.problem
        return (
            None
            if not p.memory
            else bounds.limited_memory(p.m, p.n, p.k, p.ranks, p.memory / p.word_bytes)
        )

    def flops(self, rank: int) -> int:
        rows, cols, depth = (r.size for r in self.block(rank))
        return 2 * rows * cols * depth

    def seconds(self, model: CostModel) -> float:
        """Predicted: the slower of computing and gathering with one panel of both exposed, then the
        reduction of C.
        """
        pk = self.grid.pk
        compute = model.compute_seconds(self.flops(0))
        moved = self.moved(0)
        reduced = self.layout_c.num_words(0) * (pk - 1)
        reductions = self.reduce_parts * (pk - 1) * self.tiles.tm * self.tiles.tn
        reducing = model.seconds(reductions, reduced, self.problem.sum_bytes)
        gathering = model.seconds(
            max(0, moved.messages - reductions), moved.received - reduced, self.problem.word_bytes
        )
        panels = self.panels(0)
        hidden = (
            1 - panels[0].size / self.block(0)[2].size
            if self.buffers > 1 and len(panels) > 1
            else 0.0
        )
        return compute + gathering - min(compute, gathering) * hidden + reducing

    def _telling_ranks(self) -> list[int]:
        if self.grid.size <= 64:
            return list(range(self.grid.size))
        sides = [sorted({0, p // 2, p - 1}) for p in self.grid]
        return [
            (i * self.grid.pn + j) * self.grid.pk + k
            for i in sides[0]
            for j in sides[1]
            for k in sides[2]
        ]


@dataclass(frozen=True)
class BroadcastPlan(Plan):
    """SUMMA: a panel belongs to one rank of a row and one of a column, which broadcast it. `steps`
    counts the panels.
    """

    width: int = 1

    def panels(self, rank: int) -> list[Range]:
        """K cut wherever the owner of A's columns or of B's rows changes, and at most `width` wide;
        narrower ones first.

        The owners take turns, so that with two panels on their way a rank sends and receives at the
        same time.
        """
        k = self.block(rank)[2]
        first = max(1, self.width // FIRST_PANEL) if self.buffers > 1 else self.width
        cuts = {part.start for p in self.grid[:2] for part in partition.blocks(k.size, p)} | {
            k.size
        }
        ends = sorted(cuts)
        turns = [
            (turn, k.start + start + part.start, k.start + start + part.stop)
            for start, stop in pairwise(ends)
            for turn, part in enumerate(partition.growing_pieces(stop - start, first, self.width))
        ]
        return [Range(start, stop) for _, start, stop in sorted(turns)]

    def panel_owners(self, rank: int) -> list[tuple[int, int]]:
        """Who holds each panel: which rank of this row has A's columns, and which rank of this
        column has B's rows.
        """
        k = self.block(rank)[2]
        starts = [panel.start - k.start for panel in self.panels(rank)]
        return [
            (
                partition.owner_of(at, k.size, self.grid.pn),
                partition.owner_of(at, k.size, self.grid.pm),
            )
            for at in starts
        ]

    def _messages(self, rank: int) -> int:
        i, j, _ = self.coordinates(rank)
        pm, pn, pk = self.grid
        owners = self.panel_owners(rank)
        mine_a, mine_b = sum(a == j for a, _ in owners), sum(b == i for _, b in owners)
        return mine_a * (pn - 1) + mine_b * (pm - 1) + self.reduce_parts * (pk - 1)


@dataclass(frozen=True)
class ShiftPlan(Plan):
    """Cannon: blocks of A move along rows and blocks of B along columns of a square grid, one step
    at a time.
    """

    def panels(self, rank: int) -> list[Range]:
        """The blocks of K in the order in which this rank multiplies them: i + j, i + j + 1, …"""
        i, j, _ = self.coordinates(rank)
        side = self.grid.pm
        return [
            partition.block(self.problem.k, side, (i + j + step) % side) for step in range(side)
        ]

    def moved(self, rank: int) -> Moved:
        if rank >= self.grid.size:
            return Moved(0, 0, 0)
        i, j, _ = self.coordinates(rank)
        rows, cols, _ = (r.size for r in self.block(rank))
        kept = [panel.size for panel in self.panels(rank)]
        own_a, own_b = (
            partition.block(self.problem.k, self.grid.pm, j).size,
            partition.block(self.problem.k, self.grid.pm, i).size,
        )
        # The first blocks come by the skew, unless it is by 0; each is passed on after its step,
        # the last ones are not.
        received = rows * (sum(kept) - (i == 0) * own_a) + cols * (sum(kept) - (j == 0) * own_b)
        sent = rows * (sum(kept[:-1]) + (i > 0) * own_a) + cols * (sum(kept[:-1]) + (j > 0) * own_b)
        return Moved(sent, received, 2 * (self.grid.pm - 1) + (i > 0) + (j > 0))

    @property
    def working_bytes(self) -> int:
        """Two blocks of A and of B: the one in use and the one that arrives."""
        p, side = self.problem, self.grid.pm
        m, n, k = (-(-size // side) for size in (p.m, p.n, p.k))
        blocks = 2 * k * (m + n) * p.word_bytes * (side > 1)
        widened = k * (m + n) * p.sum_bytes if p.half else 0
        return int(blocks + widened + partial_bytes(p, side, side, 1))
