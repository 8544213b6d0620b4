"""Multiply by gathering: every rank assembles its blocks of A and B, panel by panel, and sums its
part of C (COSMA's shape).

    for each tile (r, t) of this rank's block of C; one, unless memory is short:
        step 0      gather panel 0 of A's rows r and of B's columns t
        step s      gather panel s+1 in the background | C[r, t] += A[r, s] B[s, t]        (1) (2)
        at the end  reduce-scatter C[r, t] over the ranks that share it                     (3)

Each panel is dealt evenly over the ranks that need it, in the order in which it is stored, so that
an allgather's result is the panel: nothing is unpacked, and every rank sends and receives in every
step.
"""

from __future__ import annotations  # planning needs no torch, so it is imported for types only

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

from dist_ml.gemm.pieces import starts
from dist_ml.gemm.progress_thread import ProgressThread

if TYPE_CHECKING:
    import torch

    from dist_ml.comm.communicator import Communicator
    from dist_ml.comm.request import Request
    from dist_ml.gemm.grid_comm import GridComm
    from dist_ml.gemm.layout import Layout
    from dist_ml.gemm.matrix import ShardedMatrix
    from dist_ml.gemm.plan import Plan
    from dist_ml.gemm.tile_sum import ProductSums, TileSum

    Fetched: TypeAlias = tuple[torch.Tensor, list[Request]]
    FetchStep: TypeAlias = Callable[[int], Fetched]
    Fetch: TypeAlias = Callable[[int, int], Fetched]


def multiply(
    plan: Plan, comms: GridComm, a: ShardedMatrix, b: ShardedMatrix, sums: ProductSums
) -> None:
    """Run the plan on this rank of the grid. Words and messages: `plan.moved(rank)`."""
    fetch_a, fetch_b = _fetcher(a, plan, comms.along_n), _fetcher(b, plan, comms.along_m)
    with ProgressThread() as progress:
        for row, col in product(range(plan.tiles.tm), range(plan.tiles.tn)):
            total = sums.tile(row, col)
            _gather_and_add(
                plan,
                lambda step, row=row: fetch_a(a.layout.segment(row, step), step),  # type: ignore[misc]
                lambda step, col=col: fetch_b(b.layout.segment(step, col), step),  # type: ignore[misc]
                total,
                progress,
            )
            total.finish(comms.along_k)  # (3)
            del total


def _gather_and_add(
    plan: Plan, fetch_a: FetchStep, fetch_b: FetchStep, total: TileSum, progress: ProgressThread
) -> None:
    ahead = plan.buffers - 1
    fetched = {0: (fetch_a(0), fetch_b(0))}
    for step in range(plan.steps):
        (left, requests_a), (right, requests_b) = fetched.pop(step)
        progress.wait(requests_a + requests_b)
        if ahead and step + 1 < plan.steps:  # (1)
            fetched[step + 1] = fetch_a(step + 1), fetch_b(step + 1)
            progress.poll([request for _, requests in fetched[step + 1] for request in requests])
        total.add(left, right)  # (2)
        if not ahead and step + 1 < plan.steps:
            fetched[step + 1] = fetch_a(step + 1), fetch_b(step + 1)


def _fetcher(matrix: ShardedMatrix, plan: Plan, comm: Communicator) -> Fetch:
    """A function that starts gathering one segment, in the buffer of one step, and gives (it as a
    matrix, what to wait for).
    """
    layout, rank = matrix.layout, matrix.comm.rank
    counts, shapes = layout.segment_counts(rank), layout.segment_shapes(rank)
    own = _own_segments(matrix.storage, counts, comm.rank)
    largest = max(sum(shares) for shares in counts)
    buffers = (
        []
        if comm.size == 1
        else [matrix.storage.new_empty(largest) for _ in range(min(plan.buffers, plan.steps))]
    )

    def fetch(segment: int, step: int) -> Fetched:
        if comm.size == 1:
            return _as_matrix(own[segment], shapes[segment], layout), []
        whole = buffers[step % len(buffers)][: sum(counts[segment])]
        request = comm.iallgather(own[segment], whole, counts[segment])
        return _as_matrix(whole, shapes[segment], layout), [request]

    return fetch


def _as_matrix(flat: torch.Tensor, shape: tuple[int, int], layout: Layout) -> torch.Tensor:
    rows, cols = shape
    return flat.view(cols, rows).T if layout.column_major else flat.view(rows, cols)


def _own_segments(
    storage: torch.Tensor, counts: tuple[tuple[int, ...], ...], owner: int
) -> list[torch.Tensor]:
    """The storage of a dealt-out block, cut into this owner's share of each segment."""
    sizes = tuple(shares[owner] for shares in counts)
    return [storage[start : start + size] for start, size in zip(starts(sizes), sizes, strict=True)]
