"""Cannon's algorithm on a square grid: every rank multiplies the block it has while the next one
arrives.

skew     A[i, j] goes i places left, B[i, j] goes j places up: rank (i, j) then has blocks i+j of K
step s   (1) pass A left and B up   (2) C += A B   (3) wait
"""

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.gemm.grid_comm import GridComm, Sums
from dist_ml.gemm.matrix import ShardedMatrix
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.progress import Progress


class Ring:
    """One operand's blocks on their way round: the one in use, and a second buffer for the one that
    arrives.
    """

    def __init__(self, storage: torch.Tensor, sizes: list[int], comm: Communicator) -> None:
        self._block, self._sizes, self._comm = storage, sizes, comm
        self._spare = [
            torch.empty(max(sizes), dtype=storage.dtype) for _ in range(2 if comm.size > 1 else 0)
        ]

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


def multiply(plan: Plan, comms: GridComm, a: ShardedMatrix, b: ShardedMatrix, sums: Sums) -> None:
    """Run the plan on this rank of the grid. Words and messages: `plan.moved(rank)`."""
    rank = a.comm.rank
    rows, cols, _ = (r.size for r in plan.block(rank))
    depths = [panel.size for panel in plan.panels(rank)]
    ring_a = Ring(a.storage, [rows * depth for depth in depths], comms.along_n)
    ring_b = Ring(b.storage, [cols * depth for depth in depths], comms.along_m)
    i, j, _ = plan.coordinates(rank)
    flat_a, requests_a = ring_a.shift(i, 0)
    flat_b, requests_b = ring_b.shift(j, 0)
    requests = requests_a + requests_b
    total = sums.tile()
    with Progress() as progress:
        for step, depth in enumerate(depths):
            progress.wait(requests)  # (3)
            left = flat_a.view(depth, rows).T if a.layout.column_major else flat_a.view(rows, depth)
            right = (
                flat_b.view(cols, depth).T if b.layout.column_major else flat_b.view(depth, cols)
            )
            requests = []
            if step + 1 < len(depths):
                flat_a, requests_a = ring_a.shift(1, step + 1)  # (1)
                flat_b, requests_b = ring_b.shift(1, step + 1)
                requests = requests_a + requests_b
                progress.hand_over(requests)
            total.add(left, right)  # (2)
    total.finish(comms.along_k)
