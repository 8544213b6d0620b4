"""The product as loops: three orders of the same triple loop, from the textbook's to one that
reuses the cache.

Compiled where numba is installed; the same source runs as plain Python otherwise, for tests on tiny
sizes. Operands are numpy arrays of one dtype; C = alpha A B + beta C in place.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, cast

import numpy.typing as npt

from dist_ml import compiled

Array: TypeAlias = npt.NDArray[Any]
Loop: TypeAlias = Callable[[Array, Array, Array, Any, Any], None]

# Blocks of 64 rows of B, 256 wide, in float32, are 64 KiB: they stay in a core's second-level cache
# while all rows of A pass by.
BLOCK_K, BLOCK_N = 64, 256


def naive(c: Array, a: Array, b: Array, alpha: Any, beta: Any) -> None:
    """(i, j, k): one dot product an element; walks down the columns of B."""
    m, depth = a.shape
    for i in range(m):
        for j in range(b.shape[1]):
            total = alpha * 0
            for k in range(depth):
                total += a[i, k] * b[k, j]
            c[i, j] = alpha * total + (beta * c[i, j] if beta != 0 else beta)


def reordered(c: Array, a: Array, b: Array, alpha: Any, beta: Any) -> None:
    """(i, k, j): the inner loop walks along rows of B and C, so it vectorises."""
    m, depth = a.shape
    for i in range(m):
        for j in range(b.shape[1]):
            c[i, j] = beta * c[i, j] if beta != 0 else beta
        for k in range(depth):
            factor = alpha * a[i, k]
            for j in range(b.shape[1]):
                c[i, j] += factor * b[k, j]


def blocked(c: Array, a: Array, b: Array, alpha: Any, beta: Any) -> None:
    """(i, k, j) inside blocks of K and N whose part of B stays in the cache."""
    m, depth = a.shape
    n = b.shape[1]
    for i in range(m):
        for j in range(n):
            c[i, j] = beta * c[i, j] if beta != 0 else beta
    for first_j in range(0, n, BLOCK_N):
        last_j = min(n, first_j + BLOCK_N)
        for first_k in range(0, depth, BLOCK_K):
            for i in range(m):
                row = c[i, first_j:last_j]
                for k in range(first_k, min(depth, first_k + BLOCK_K)):
                    factor, other = alpha * a[i, k], b[k, first_j:last_j]
                    for j in range(
                        row.size
                    ):  # from 0, or the compiler allows for negative indices and doesn't vectorise
                        row[j] += factor * other[j]


@cache
def fastest(function: Loop) -> Loop:
    """The function compiled, where there is a compiler; else itself."""
    if not compiled.available():
        return function
    import numba

    return cast(Loop, numba.njit(nogil=True, fastmath={"contract", "reassoc"})(function))
