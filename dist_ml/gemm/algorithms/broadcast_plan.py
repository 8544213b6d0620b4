"""The plan of algorithms whose panels are broadcast: they differ by their grid."""

from dataclasses import dataclass
from itertools import pairwise

from dist_ml import partition
from dist_ml.gemm.algorithms.block_layouts import block_layouts
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.steps import check_grid, reduce_parts, steps_and_buffers
from dist_ml.partition import Range

# Nothing hides the arrival of the first panels. So where panels travel ahead, an owner's first is
# this part of the full width, and each next one twice as wide as the last.
FIRST_PANEL = 8

# Without a memory limit, two panels are on their way while a third is multiplied: one that a rank
# sends, one that it receives.
BROADCASTS_HELD = 3


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


def broadcast_plan(
    name: str, shape: ProductShape, grid: Grid, choice: Choice, orders: Orders
) -> Plan:
    check_grid(shape, grid)
    steps, buffers = steps_and_buffers(shape, grid, choice)
    if shape.memory is None and buffers > 1:
        buffers = BROADCASTS_HELD
    depth = -(-shape.sides[2] // grid.pk)
    parts = reduce_parts(shape, grid)
    a, b, c = block_layouts(shape, grid, orders, parts)
    return BroadcastPlan(
        name, shape, grid, a, b, c, steps, parts, buffers, width=-(-depth // steps)
    )
