"""The grid of ranks for C = A B: what a pm x pn x pk grid costs in words and in memory.

A grid cuts the M x N x K cuboid of products into pm x pn x pk blocks, one a rank. Rank (i, j, l)
gathers its block of A from the pn ranks that share it, its block of B from pm ranks, and
reduce-scatters its part of C over pk ranks:

    words = (MK / pm pk)(1 - 1/pn) + (KN / pk pn)(1 - 1/pm) + (MN / pm pn)(1 - 1/pk)

C stays where it is while A and B pass by in panels, so the memory needed besides the shards is the
panels, and a partial C where pk > 1. Where even that is too much, a rank's block of C is computed
in tm x tn tiles, one after the other: its part of A then passes by tn times and its part of B tm
times. All functions of (pm, pn, pk) and (tm, tn) take numbers or numpy arrays.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dist_ml.errors import ConfigError

# Under a memory limit C is reduced in this many parts, so that what a reduction needs is small
# beside the partial C itself.
REDUCE_PARTS = 32


class Grid(NamedTuple):
    """Ranks along M, N and K; rank = (i pn + j) pk + l."""

    pm: int
    pn: int
    pk: int

    @property
    def size(self) -> int:
        return self.pm * self.pn * self.pk


class Tiles(NamedTuple):
    """How many tiles of C a rank computes one after the other, along M and N."""

    tm: int = 1
    tn: int = 1


ONE_TILE = Tiles()


@dataclass(frozen=True)
class Problem:
    """One product to plan: sizes of op(A) (m x k) and op(B) (k x n), ranks, bytes a word, and the
    memory limit.

    `memory` is the bytes that a rank may hold besides its shards of A, B and C (None: no limit).
    `sum_bytes` is the word size that products are summed in: 4 for bfloat16.
    """

    m: int
    n: int
    k: int
    ranks: int
    word_bytes: int = 4
    sum_bytes: int = 4
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.ranks < 1:
            raise ConfigError(f"ranks={self.ranks} must be at least 1")
        if self.memory is not None and self.memory < 0:
            raise ConfigError(f"memory={self.memory} bytes must be 0 or more, or null for no limit")

    @property
    def sides(self) -> tuple[int, int, int]:
        """The dimensions as grids see them: a dimension of 0 still has one block."""
        return max(1, self.m), max(1, self.n), max(1, self.k)

    @property
    def half(self) -> bool:
        """Are the operands in half precision, so that they are widened to be summed?"""
        return self.sum_bytes != self.word_bytes


def most_words(problem: Problem, pm: Any, pn: Any, pk: Any, tm: Any = 1, tn: Any = 1) -> Any:
    """Words received by the most loaded rank, remainders included (to the word where the grid
    divides the sizes).
    """
    m, n, k = -(-problem.m // pm), -(-problem.n // pn), -(-problem.k // pk)
    return (m * k - m * k // pn) * tn + (k * n - k * n // pm) * tm + -(-(m * n) // pk) * (pk - 1)


def mean_words(problem: Problem, pm: Any, pn: Any, pk: Any) -> Any:
    """Words received by a rank of the grid on average: the formula of the module's text."""
    m, n, k = problem.m, problem.n, problem.k
    return (
        m * k / (pm * pk) * (1 - 1 / pn)
        + k * n / (pk * pn) * (1 - 1 / pm)
        + m * n / (pm * pn) * (1 - 1 / pk)
    )


def tile_sizes(problem: Problem, pm: Any, pn: Any, tm: Any = 1, tn: Any = 1) -> tuple[Any, Any]:
    """Rows and columns of the largest tile of C."""
    rows, cols = -(-problem.m // pm), -(-problem.n // pn)
    return -(-rows // tm), -(-cols // tn)


def panel_bytes(
    problem: Problem, pm: Any, pn: Any, width: Any, buffers: Any, tm: Any = 1, tn: Any = 1
) -> Any:
    """Bytes of `buffers` panels of A and B of `width` along K: those that are received, and float32
    copies of bfloat16 ones.
    """
    m, n = tile_sizes(problem, pm, pn, tm, tn)
    received = buffers * width * problem.word_bytes * (m * (pn > 1) + n * (pm > 1))
    return received + problem.half * width * (m + n) * problem.sum_bytes


def partial_bytes(problem: Problem, pm: Any, pn: Any, pk: Any, tm: Any = 1, tn: Any = 1) -> Any:
    """Bytes of the partial C that a rank sums in where C itself can't serve: where pk > 1, or C is
    in half precision.
    """
    m, n = tile_sizes(problem, pm, pn, tm, tn)
    return m * n * problem.sum_bytes * ((pk > 1) | problem.half)


def reduce_bytes(
    problem: Problem, pm: Any, pn: Any, pk: Any, parts: int = REDUCE_PARTS, tm: Any = 1, tn: Any = 1
) -> Any:
    """Bytes needed to reduce C in `parts` row parts, a rank receiving its share of one at a time,
    and MPI holding as much.
    """
    rows, cols = tile_sizes(problem, pm, pn, tm, tn)
    return 2 * -(-(-(-rows // parts) * cols) // pk) * problem.sum_bytes * (pk > 1)


def least_bytes(
    problem: Problem,
    pm: Any,
    pn: Any,
    pk: Any,
    width: int = 1,
    buffers: int = 1,
    tm: Any = 1,
    tn: Any = 1,
) -> Any:
    """The memory a grid needs with `buffers` panels of at most `width`."""
    panels = panel_bytes(problem, pm, pn, np.minimum(width, -(-problem.k // pk)), buffers, tm, tn)
    return (
        panels
        + partial_bytes(problem, pm, pn, pk, tm, tn)
        + reduce_bytes(problem, pm, pn, pk, REDUCE_PARTS, tm, tn)
    )
