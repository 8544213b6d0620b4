"""SUMMA: panels of A and B are broadcast along the rows and columns of a 2-D grid; with layers,
each for its part of K (2.5D).

         B[s, :] from row i'            step s on rank (i, j):
             | | |                       (1) start broadcasting panel s+1
             v v v                       (2) C[i, j] += A[i, s] B[s, j]
A[:, s] --> [C][C][C]                    (3) wait for panel s+1
from    --> [C][C][C]                   over the layers, at the end:
column j'                                (4) reduce-scatter C
"""

from __future__ import annotations  # planning needs no torch, so it is imported for types only

from collections import deque
from typing import TYPE_CHECKING

from dist_ml.errors import ConfigError
from dist_ml.gemm.algorithms.broadcast_plan import BroadcastPlan, broadcast_plan
from dist_ml.gemm.algorithms.flat_grid import flat_grid
from dist_ml.gemm.progress_thread import ProgressThread
from dist_ml.partition import Range

if TYPE_CHECKING:
    import torch

    from dist_ml.comm.communicator import Communicator
    from dist_ml.comm.request import Request
    from dist_ml.gemm.choice import Choice, Orders
    from dist_ml.gemm.grid_comm import GridComm
    from dist_ml.gemm.matrix import ShardedMatrix
    from dist_ml.gemm.plan import Plan
    from dist_ml.gemm.product_shape import ProductShape
    from dist_ml.gemm.tile_sum import ProductSums


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> Plan:
    """The 2-D grid with the fewest words, or `choice.grid`. Source: van de Geijn, Watts, "SUMMA"
    (Concurrency 1997).
    """
    if choice.grid is not None and choice.grid.pk != 1:
        raise ConfigError(
            f"grid={list(choice.grid)}: summa has no layers; use pk = 1, or summa_25d"
        )
    return broadcast_plan(
        "summa", shape, choice.grid or flat_grid(shape, shape.ranks, 1), choice, orders
    )


class BroadcastPanels:
    """The panels of one operand: cut from this rank's block where it is the owner, received where
    it is not.

    `block` has K along its columns for A, and is passed transposed for B, so that K is along the
    columns of both.
    """

    def __init__(
        self,
        block: torch.Tensor,
        column_major: bool,
        owned: Range,
        comm: Communicator,
        width: int,
        buffers: int,
    ) -> None:
        self._block, self._column_major, self._owned, self._comm = block, column_major, owned, comm
        size = 0 if comm.size == 1 else block.shape[0] * width
        self._buffers = [block.new_empty(size) for _ in range(buffers)]
        self._turn = 0

    def fetch(self, panel: Range, owner: int) -> tuple[torch.Tensor, list[Request]]:
        """Start broadcasting one panel: (the panel, rows x width; what to wait for)."""
        mine = None
        if owner == self._comm.rank:
            mine = self._block[:, panel.start - self._owned.start : panel.stop - self._owned.start]
            if self._comm.size == 1:
                return mine, []
            flat = mine.T if self._column_major else mine
            if flat.is_contiguous():
                return mine, [self._comm.ibroadcast(flat.reshape(-1), owner)]
        rows = self._block.shape[0]
        buffer = self._buffers[self._turn % len(self._buffers)][: rows * panel.size]
        self._turn += 1
        # A panel travels in the order in which its owner stores it; all owners of one matrix store
        # it the same way.
        stored = (
            buffer.view(panel.size, rows).T if self._column_major else buffer.view(rows, panel.size)
        )
        if mine is not None:
            stored.copy_(mine)
        return stored, [self._comm.ibroadcast(buffer, owner)]


def multiply(
    plan: Plan, comms: GridComm, a: ShardedMatrix, b: ShardedMatrix, sums: ProductSums
) -> None:
    """Run the plan on this rank of the grid. Words and messages: `plan.moved(rank)`."""
    assert isinstance(plan, BroadcastPlan)
    rank = a.comm.rank
    owned_a, owned_b = _owned(a.layout.col_ranges(rank)), _owned(b.layout.row_ranges(rank))
    left = BroadcastPanels(
        a.local, a.layout.column_major, owned_a, comms.along_n, plan.width, plan.buffers
    )
    right = BroadcastPanels(
        b.local.T, not b.layout.column_major, owned_b, comms.along_m, plan.width, plan.buffers
    )
    panels, owners = plan.panels(rank), plan.panel_owners(rank)

    def fetch(step: int) -> tuple[torch.Tensor, torch.Tensor, list[Request]]:
        owner_a, owner_b = owners[step]
        part_a, pending_a = left.fetch(panels[step], owner_a)
        part_b, pending_b = right.fetch(panels[step], owner_b)
        return part_a, part_b.T, pending_a + pending_b

    total = sums.tile()
    with ProgressThread() as progress:
        coming = deque(fetch(step) for step in range(min(plan.buffers - 1, len(panels))))
        for _, _, pending in coming:
            progress.poll(pending)
        for step in range(len(panels)):
            if not coming:
                coming.append(fetch(step))
            part_a, part_b, pending = coming.popleft()
            progress.wait(pending)  # (3)
            following = step + plan.buffers - 1
            if step < following < len(panels):
                coming.append(fetch(following))  # (1)
                progress.poll(coming[-1][2])
            total.add(part_a, part_b)  # (2)
    total.finish(comms.along_k)  # (4)


def _owned(ranges: tuple[Range, ...]) -> Range:
    """The one range of K that this rank's block covers."""
    return ranges[0] if ranges else Range(0, 0)
