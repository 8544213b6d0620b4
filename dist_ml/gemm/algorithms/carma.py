"""Recursive splitting of the largest dimension by the prime factors of P.

Source: Demmel, Eliahu, Fox, Kamil, Lipshitz, Schwartz, Spillinger, "Communication-Optimal Parallel
Recursive Rectangular Matrix Multiplication" (IPDPS 2013), whose breadth-first steps these are, for
any P.
"""

from dist_ml.gemm.algorithms.gathering_plan import gathering_plan
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> Plan:
    """The recursive grid (or `choice.grid`), then gathered."""
    return gathering_plan("carma", shape, choice.grid or recursive_grid(shape), choice, orders)


def recursive_grid(shape: ProductShape) -> Grid:
    """Each prime factor of the ranks, largest first, splits the dimension that is longest by then;
    factors that no dimension is long enough for leave ranks idle.
    """
    sides, counts = list(shape.sides), [1, 1, 1]
    for prime in _primes(shape.ranks):
        fitting = [dim for dim in range(3) if counts[dim] * prime <= shape.sides[dim]]
        if fitting:
            longest = max(fitting, key=lambda dim: sides[dim] / counts[dim])
            counts[longest] *= prime
    return Grid(*counts)


def _primes(n: int) -> list[int]:
    """Prime factors, largest first."""
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1 if divisor * divisor <= n else max(1, n - divisor)
    return factors[::-1]
