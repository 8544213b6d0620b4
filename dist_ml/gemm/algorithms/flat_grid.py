"""The best grid of a given number of layers, each of them two-dimensional."""

from math import isqrt

from dist_ml.gemm.grid import Grid, mean_words
from dist_ml.gemm.product_shape import ProductShape


def flat_grid(shape: ProductShape, ranks: int, layers: int) -> Grid:
    """The 2-D grid of `ranks` on each of `layers` with the fewest words; fewer ranks where the
    sizes are too small.
    """
    m, n, _ = shape.sides
    ranks = next(
        p
        for p in range(min(ranks, m * n), 0, -1)
        if any(p % pm == 0 and pm <= m and p // pm <= n for pm in divisors(p))
    )
    grids = [
        Grid(pm, ranks // pm, layers) for pm in divisors(ranks) if pm <= m and ranks // pm <= n
    ]
    return min(grids, key=lambda grid: (mean_words(shape, *grid), abs(grid.pm - grid.pn)))


def divisors(n: int) -> list[int]:
    """All divisors of `n`, ascending."""
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
