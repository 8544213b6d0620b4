"""Jobs on the boards of a HammingMesh: any rows and any columns whose boards are free.

A job of u x v boards needs u rows and v columns all of whose crossings are free; they needn't be
neighbours. A failed board takes one crossing out. Greedy: the rows that have most columns free
together; other shapes of as many boards where the first doesn't fit.

Source: Hoefler et al., SC 2022, section III: virtual sub-meshes, transposes, aspect ratios.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Placed(NamedTuple):
    """The rows and columns of boards that a job has."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


class Boards:
    """`free` [rows, columns]: boards that no job has and that work."""

    def __init__(self, rows: int, columns: int, failed: Sequence[tuple[int, int]] = ()) -> None:
        self.free: NDArray[np.bool_] = np.ones((rows, columns), np.bool_)
        for board in failed:
            self.free[board] = False
        self._working = int(self.free.sum())

    @property
    def utilisation(self) -> float:
        """Of the boards that work, those that jobs have."""
        return 1 - float(self.free.sum()) / self._working if self._working else 0.0

    def place(self, num_rows: int, num_columns: int, reshape: bool = True) -> Placed | None:
        """Give a job its boards; None where it fits in no shape that is tried: as asked, turned,
        and, with `reshape`, the others of as many boards whose sides differ by at most 8 times.
        O(shapes x rows^2 x columns).
        """
        for u, v in _shapes(num_rows, num_columns, reshape):
            found = self._fitting(u, v)
            if found is not None:
                self.free[np.ix_(found.rows, found.columns)] = False
                return found
        return None

    def release(self, placed: Placed) -> None:
        self.free[np.ix_(placed.rows, placed.columns)] = True

    def _fitting(self, u: int, v: int) -> Placed | None:
        """From each row in turn, the rows that leave most columns free are added, one by one."""
        if u > self.free.shape[0] or v > self.free.shape[1]:
            return None
        best: Placed | None = None
        tightest = self.free.shape[1] + 1
        for first in np.flatnonzero(self.free.sum(1) >= v):
            rows, common = [int(first)], self.free[first].copy()
            while len(rows) < u:
                left = (self.free & common).sum(1)
                left[rows] = -1
                next_row = int(left.argmax())
                if left[next_row] < v:
                    break
                rows.append(next_row)
                common &= self.free[next_row]
            if len(rows) == u and common.sum() < tightest:  # the least that others could use
                tightest = int(common.sum())
                best = Placed(tuple(sorted(rows)), tuple(map(int, np.flatnonzero(common)[:v])))
        return best


def _shapes(rows: int, columns: int, reshape: bool) -> Iterator[tuple[int, int]]:
    tried = [(rows, columns), (columns, rows)]
    if reshape:
        boards = rows * columns
        sides = [(u, boards // u) for u in range(1, boards + 1) if boards % u == 0]
        tried += sorted(
            (side for side in sides if max(side) <= 8 * min(side)),
            key=lambda side: max(side) / min(side),
        )
    return iter(dict.fromkeys(tried))


def filled(boards: Boards, jobs: Sequence[tuple[int, int]]) -> list[Placed | None]:
    """Where each of the jobs came, largest first, in the order in which they are given."""
    order = sorted(range(len(jobs)), key=lambda index: -jobs[index][0] * jobs[index][1])
    found: list[Placed | None] = [None] * len(jobs)
    for index in order:
        found[index] = boards.place(*jobs[index])
    return found
