"""The loops of the shared-memory reduction in plain torch: for use without numba, and to test the
compiled ones against.
"""

import threading
from typing import TypeAlias

import torch

from dist_ml.comm.buffer import Array

Rows: TypeAlias = tuple[int, ...]  # 0, 1, ... number of copies - 1

LINE_BYTES = 64
FLAG_STRIDE = LINE_BYTES // 8
PIECE_BYTES = (
    1 << 17
    # what is summed at a time, so that the sum is still in the cache when it is written to all
    # copies
)

_fence = threading.Lock()  # taking and giving back a lock orders memory on every processor


def signal(flags: Array, index: int, epoch: int) -> None:
    """Set the flag at `index` to `epoch`, after all that this rank wrote before."""
    with _fence:
        pass
    flags[index * FLAG_STRIDE] = epoch


def reached(flags: Array, first: int, num_flags: int, epoch: int, spins: int) -> bool:
    """Whether all of `num_flags` flags from `first` on are at `epoch` or beyond, looking again up
    to `spins` times.
    """
    watched = flags[first * FLAG_STRIDE : (first + num_flags) * FLAG_STRIDE : FLAG_STRIDE]
    for _ in range(min(spins, 100) + 1):
        if watched.min() >= epoch:
            with _fence:
                return True
    return False


def reduce(copies: Array, rows: Rows, start: int, stop: int, divisor: float, target: int) -> None:
    """Columns [start, stop) of all rows of `copies` are added in the order of the `rows` and
    divided by `divisor`.

    The result goes to row `target`, or to all rows when that is negative. The caller is the only
    one to touch these columns.
    """
    tensors = torch.from_numpy(copies)
    piece = PIECE_BYTES // copies.itemsize
    total = torch.empty(min(piece, stop - start), dtype=tensors.dtype)
    for first in range(start, stop, piece):
        columns = slice(first, min(first + piece, stop))
        part = total[: columns.stop - columns.start]
        part.copy_(tensors[0, columns])
        for row in rows[1:]:
            part += tensors[row, columns]
        if divisor != 1:
            part /= divisor
        for row in rows if target < 0 else (target,):
            tensors[row, columns].copy_(part)


def advance(
    stage: int,
    copies: Array,
    rows: Rows,
    flags: Array,
    rank: int,
    epoch: int,
    start: int,
    stop: int,
    divisor: float,
    spins: int,
) -> int:
    """Bring one reduction as far as it gets without waiting longer than `spins`; returns the stage
    to go on from.

    Stage 0: not begun. 1: this rank has arrived. 2: all ranks have arrived, and this rank has
    reduced [start, stop) into all copies. 3: all ranks have reduced their ranges. `flags` holds a
    line for each rank's arrival, then one for each rank's end.
    """
    if stage == 0:
        signal(flags, rank, epoch)
        stage = 1
    if stage == 1 and reached(flags, 0, len(rows), epoch, spins):
        reduce(copies, rows, start, stop, divisor, -1)
        signal(flags, len(rows) + rank, epoch)
        stage = 2
    if stage == 2 and reached(flags, len(rows), len(rows), epoch, spins):
        stage = 3
    return stage
