"""Cannon's algorithm on a square grid: every rank multiplies the block it has while the next one
arrives.

skew     A[i, j] goes i places left, B[i, j] goes j places up: rank (i, j) then has blocks i+j of K
step s   (1) pass A left and B up   (2) C += A B   (3) wait
"""

from __future__ import annotations  # planning needs no torch, so it is imported for types only

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from dist_ml import partition
from dist_ml.errors import ConfigError
from dist_ml.gemm.algorithms.block_layouts import block_layouts
from dist_ml.gemm.grid import Grid, partial_bytes
from dist_ml.gemm.plan import Moved, Plan
from dist_ml.gemm.progress_thread import ProgressThread
from dist_ml.gemm.steps import check_grid, check_memory

if TYPE_CHECKING:
    import torch

    from dist_ml.comm.communicator import Communicator
    from dist_ml.comm.request import Request
    from dist_ml.gemm.choice import Choice, Orders
    from dist_ml.gemm.grid_comm import GridComm
    from dist_ml.gemm.matrix import ShardedMatrix
    from dist_ml.gemm.product_shape import ProductShape
    from dist_ml.gemm.tile_sum import ProductSums
    from dist_ml.partition import Range


@dataclass(frozen=True)
class ShiftPlan(Plan):
    """Cannon: blocks of A move along rows and blocks of B along columns of a square grid, one step
    at a time.
    """

    def panels(self, rank: int) -> list[Range]:
        """The blocks of K in the order in which this rank multiplies them: i + j, i + j + 1, …"""
        i, j, _ = self.coordinates(rank)
        side = self.grid.pm
        return [partition.block(self.shape.k, side, (i + j + step) % side) for step in range(side)]

    def moved(self, rank: int) -> Moved:
        if rank >= self.grid.size:
            return Moved(0, 0, 0)
        i, j, _ = self.coordinates(rank)
        rows, cols, _ = (r.size for r in self.block(rank))
        kept = [panel.size for panel in self.panels(rank)]
        own_a, own_b = (
            partition.block(self.shape.k, self.grid.pm, j).size,
            partition.block(self.shape.k, self.grid.pm, i).size,
        )
        # The first blocks come by the skew, unless it is by 0; each is passed on after its step,
        # the last ones are not.
        received = rows * (sum(kept) - (i == 0) * own_a) + cols * (sum(kept) - (j == 0) * own_b)
        sent = rows * (sum(kept[:-1]) + (i > 0) * own_a) + cols * (sum(kept[:-1]) + (j > 0) * own_b)
        return Moved(sent, received, 2 * (self.grid.pm - 1) + (i > 0) + (j > 0))

    @property
    def working_bytes(self) -> int:
        """Two blocks of A and of B: the one in use and the one that arrives."""
        p, side = self.shape, self.grid.pm
        m, n, k = (-(-size // side) for size in (p.m, p.n, p.k))
        blocks = 2 * k * (m + n) * p.word_bytes * (side > 1)
        widened = k * (m + n) * p.sum_bytes if p.half else 0
        return int(blocks + widened + partial_bytes(p, side, side, 1))


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> ShiftPlan:
    """The largest square grid, or `choice.grid`; ranks beyond it stay idle. Source: Cannon's thesis
    (1969).
    """
    side = min(isqrt(shape.ranks), *shape.sides)
    grid = choice.grid or Grid(side, side, 1)
    if grid.pm != grid.pn or grid.pk != 1:
        raise ConfigError(f"grid={list(grid)}: cannon needs a square, such as [{side}, {side}, 1]")
    check_grid(shape, grid)
    a, b, c = block_layouts(shape, grid, orders, parts=1)
    found = ShiftPlan("cannon", shape, grid, a, b, c, steps=grid.pm, buffers=2)
    check_memory(shape, found.working_bytes)
    return found


class ShiftedBlocks:
    """One operand's blocks on their way round: the one in use, and a second buffer for the one that
    arrives.
    """

    def __init__(self, storage: torch.Tensor, sizes: list[int], comm: Communicator) -> None:
        self._block, self._sizes, self._comm = storage, sizes, comm
        self._spare = [storage.new_empty(max(sizes)) for _ in range(2 if comm.size > 1 else 0)]

    def shift(self, places: int, step: int) -> tuple[torch.Tensor, list[Request]]:
        """Send the current block `places` ranks down and receive the one for `step`: (that block,
        what to wait for).
        """
        if places % self._comm.size == 0:
            return self._block, []
        arriving = self._spare[step % 2][: self._sizes[step]]
        source = (self._comm.rank + places) % self._comm.size
        destination = (self._comm.rank - places) % self._comm.size
        requests = [
            self._comm.ireceive(arriving, source),
            self._comm.isend(self._block, destination),
        ]
        self._block = arriving
        return arriving, requests


def multiply(
    plan: Plan, comms: GridComm, a: ShardedMatrix, b: ShardedMatrix, sums: ProductSums
) -> None:
    """Run the plan on this rank of the grid. Words and messages: `plan.moved(rank)`."""
    rank = a.comm.rank
    rows, cols, _ = (r.size for r in plan.block(rank))
    depths = [panel.size for panel in plan.panels(rank)]
    blocks_a = ShiftedBlocks(a.storage, [rows * depth for depth in depths], comms.along_n)
    blocks_b = ShiftedBlocks(b.storage, [cols * depth for depth in depths], comms.along_m)
    i, j, _ = plan.coordinates(rank)
    flat_a, requests_a = blocks_a.shift(i, 0)
    flat_b, requests_b = blocks_b.shift(j, 0)
    requests = requests_a + requests_b
    total = sums.tile()
    with ProgressThread() as progress:
        for step, depth in enumerate(depths):
            progress.wait(requests)  # (3)
            left = flat_a.view(depth, rows).T if a.layout.column_major else flat_a.view(rows, depth)
            right = (
                flat_b.view(cols, depth).T if b.layout.column_major else flat_b.view(depth, cols)
            )
            requests = []
            if step + 1 < len(depths):
                flat_a, requests_a = blocks_a.shift(1, step + 1)  # (1)
                flat_b, requests_b = blocks_b.shift(1, step + 1)
                requests = requests_a + requests_b
                progress.poll(requests)
            total.add(left, right)  # (2)
    total.finish(comms.along_k)
