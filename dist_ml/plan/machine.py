"""How fast this machine computes: seconds of operators, measured once and read by size.

A matrix product is interpolated in the logarithms of its three sizes between measured ones. Any
other operator has a curve of seconds over its size: floating-point operations where it has some
(convolutions, fused attention), else bytes. An operator that was never measured moves its bytes as
addition does. What Python and autograd take is a constant an operator, fitted to whole blocks.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from dist_ml.plan.operators import Operator

PRODUCT_SIZES = (1, 8, 64, 256, 1024, 4096)
_UNKNOWN = "add"  # moves bytes, and little else


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


@dataclass(frozen=True)
class Processor:
    """One rank's share of the processor, with `ranks` of them at work on the node at once."""

    ranks: int
    threads: int
    products: Products
    curves: dict[str, Curve]
    optimizers: dict[str, Curve]  # over parameters
    operator_seconds: float = 0.0  # of Python and autograd, beside what an operator itself takes
    step_seconds: float = 0.0  # of a step that computes next to nothing
    allreduces: dict[int, Curve] = field(default_factory=dict)  # auto's, by ranks, over bytes
    collectives: dict[int, Curve] = field(default_factory=dict)  # the MPI's allreduce, likewise
    message: Curve | None = None  # over bytes, from rank to rank
    base_bytes: int = 0  # resident, of a process before it has a model

    def seconds(self, operators: Sequence[Operator]) -> float:
        return sum(map(self.operator, operators)) + self.operator_seconds * len(operators)

    def operator(self, operator: Operator) -> float:
        if operator.product is not None:
            return operator.times * self.products.at(*operator.product)
        curve = self.curves.get(operator.name, self.curves[_UNKNOWN])
        uses_flops = operator.flops and operator.name in self.curves
        return curve.at(operator.flops if uses_flops else operator.num_bytes)

    def to_mapping(self) -> dict[str, Any]:
        return {
            "ranks": self.ranks,
            "threads": self.threads,
            "products": [[*sizes, seconds] for sizes, seconds in self.products.seconds.items()],
            "curves": self.curves,
            "optimizers": self.optimizers,
            "operator_seconds": self.operator_seconds,
            "step_seconds": self.step_seconds,
            "allreduces": {str(ranks): curve for ranks, curve in self.allreduces.items()},
            "collectives": {str(ranks): curve for ranks, curve in self.collectives.items()},
            "base_bytes": self.base_bytes,
            "message": self.message,
        }

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> "Processor":
        """`ValueError`, `KeyError` or `TypeError` for what isn't one."""

        def curve(pair: Sequence[Sequence[float]]) -> Curve:
            sizes, seconds = (tuple(map(float, values)) for values in pair)
            if len(sizes) != len(seconds) or not sizes or min(seconds) <= 0:
                raise ValueError(pair)
            return Curve(sizes, seconds)

        def curves(named: Mapping[str, Any]) -> dict[str, Curve]:
            return {name: curve(pair) for name, pair in named.items()}

        sizes = {
            (int(m), int(n), int(k)): float(seconds) for m, n, k, seconds in mapping["products"]
        }
        message = mapping["message"]
        return Processor(
            int(mapping["ranks"]),
            int(mapping["threads"]),
            Products(sizes),
            curves(mapping["curves"]),
            curves(mapping["optimizers"]),
            float(mapping["operator_seconds"]),
            float(mapping["step_seconds"]),
            {int(ranks): curve(pair) for ranks, pair in mapping["allreduces"].items()},
            {int(ranks): curve(pair) for ranks, pair in mapping["collectives"].items()},
            None if message is None else curve(message),
            int(mapping["base_bytes"]),
        )
