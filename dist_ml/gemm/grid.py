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

from typing import Any, NamedTuple

import numpy as np

from dist_ml.gemm.product_shape import ProductShape

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


def most_words(shape: ProductShape, pm: Any, pn: Any, pk: Any, tm: Any = 1, tn: Any = 1) -> Any:
    """Words received by the most loaded rank, remainders included (to the word where the grid
    divides the sizes).
    """
    m, n, k = -(-shape.m // pm), -(-shape.n // pn), -(-shape.k // pk)
    return (m * k - m * k // pn) * tn + (k * n - k * n // pm) * tm + -(-(m * n) // pk) * (pk - 1)


def mean_words(shape: ProductShape, pm: Any, pn: Any, pk: Any) -> Any:
    """Words received by a rank of the grid on average: the formula of the module's text."""
    m, n, k = shape.m, shape.n, shape.k
    return (
        m * k / (pm * pk) * (1 - 1 / pn)
        + k * n / (pk * pn) * (1 - 1 / pm)
        + m * n / (pm * pn) * (1 - 1 / pk)
    )


def tile_sizes(shape: ProductShape, pm: Any, pn: Any, tm: Any = 1, tn: Any = 1) -> tuple[Any, Any]:
    """Rows and columns of the largest tile of C."""
    rows, cols = -(-shape.m // pm), -(-shape.n // pn)
    return -(-rows // tm), -(-cols // tn)


def panel_bytes(
    shape: ProductShape, pm: Any, pn: Any, width: Any, buffers: Any, tm: Any = 1, tn: Any = 1
) -> Any:
    """Bytes of `buffers` panels of A and B of `width` along K: those that are received, and float32
    copies of bfloat16 ones.
    """
    m, n = tile_sizes(shape, pm, pn, tm, tn)
    received = buffers * width * shape.word_bytes * (m * (pn > 1) + n * (pm > 1))
    return received + shape.half * width * (m + n) * shape.sum_bytes


def partial_bytes(shape: ProductShape, pm: Any, pn: Any, pk: Any, tm: Any = 1, tn: Any = 1) -> Any:
    """Bytes of the partial C that a rank sums in where C itself can't serve: where pk > 1, or C is
    in half precision.
    """
    m, n = tile_sizes(shape, pm, pn, tm, tn)
    return m * n * shape.sum_bytes * ((pk > 1) | shape.half)


def reduce_bytes(
    shape: ProductShape,
    pm: Any,
    pn: Any,
    pk: Any,
    parts: int = REDUCE_PARTS,
    tm: Any = 1,
    tn: Any = 1,
) -> Any:
    """Bytes needed to reduce C in `parts` row parts, a rank receiving its share of one at a time,
    and MPI holding as much.
    """
    rows, cols = tile_sizes(shape, pm, pn, tm, tn)
    return 2 * -(-(-(-rows // parts) * cols) // pk) * shape.sum_bytes * (pk > 1)


def least_bytes(
    shape: ProductShape,
    pm: Any,
    pn: Any,
    pk: Any,
    width: int = 1,
    buffers: int = 1,
    tm: Any = 1,
    tn: Any = 1,
) -> Any:
    """The memory a grid needs with `buffers` panels of at most `width`."""
    panels = panel_bytes(shape, pm, pn, np.minimum(width, -(-shape.k // pk)), buffers, tm, tn)
    return (
        panels
        + partial_bytes(shape, pm, pn, pk, tm, tn)
        + reduce_bytes(shape, pm, pn, pk, REDUCE_PARTS, tm, tn)
    )
