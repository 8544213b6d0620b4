"""Seconds that were measured at some sizes, read at others."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

PRODUCT_SIZES = (1, 8, 64, 256, 1024, 4096)


class Curve(NamedTuple):
    """Seconds by size, sizes rising."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def through(samples: Mapping[float, float]) -> "Curve":
        sizes = sorted(samples)
        return Curve(tuple(sizes), tuple(samples[size] for size in sizes))

    def at(self, size: float) -> float:
        """Between two sizes along the logarithms of both; below the smallest its seconds, beyond
        the largest in proportion.
        """
        if size <= self.sizes[0]:
            return self.seconds[0]
        if size >= self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        upper = bisect_right(self.sizes, size)
        low, high = self.sizes[upper - 1], self.sizes[upper]
        share = math.log(size / low) / math.log(high / low)
        before, after = self.seconds[upper - 1], self.seconds[upper]
        return float(before * (after / before) ** share)


class Products(NamedTuple):
    """Seconds of products [m, k] x [k, n] at m, n, k of `PRODUCT_SIZES`, as far as measured."""

    seconds: dict[tuple[int, int, int], float]

    def at(self, m: int, n: int, k: int) -> float:
        """Floating-point operations over the rate, which is interpolated along the logarithms of
        the sizes; beyond those measured it is that of the nearest.
        """
        corners = [_neighbours(size) for size in (m, n, k)]
        rate = 0.0
        for chosen in product(*corners):
            sizes = chosen[0][0], chosen[1][0], chosen[2][0]
            rate += math.prod(share for _, share in chosen) * math.log(self._rate(sizes))
        return 2.0 * m * n * k / math.exp(rate)

    def _rate(self, sizes: tuple[int, int, int]) -> float:
        """Of a measured one: the largest below, where these sizes would take long to measure."""
        while sizes not in self.seconds:
            place = max(range(3), key=lambda axis: sizes[axis])
            smaller = PRODUCT_SIZES[PRODUCT_SIZES.index(sizes[place]) - 1]
            sizes = (*sizes[:place], smaller, *sizes[place + 1 :])  # type: ignore[assignment]
        return 2.0 * math.prod(sizes) / self.seconds[sizes]


def _neighbours(size: int) -> list[tuple[int, float]]:
    """The measured sizes on both sides, with the weight of each."""
    size = max(PRODUCT_SIZES[0], min(size, PRODUCT_SIZES[-1]))
    upper = min(bisect_right(PRODUCT_SIZES, size), len(PRODUCT_SIZES) - 1)
    low, high = PRODUCT_SIZES[upper - 1], PRODUCT_SIZES[upper]
    share = math.log(size / low) / math.log(high / low)
    return [(low, 1 - share), (high, share)]
