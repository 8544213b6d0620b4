"""The one cost model: seconds that messages, words, copies, merges and operations take.

A link is the two numbers of Hockney's model (R. Hockney, "The communication challenge for MPP",
Parallel Computing 20, 1994, section 2): a message of b bytes takes latency + b / rate. Plans of
sparse allreduces and of distributed products predict seconds from it; what can't be written as a
formula is a table of measured seconds by size, read by `interpolate`. Nothing here communicates:
`comm/sparse/probe.py` and `comm/allreduce/auto.py` measure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Link:
    """One way for a message to go."""

    latency_seconds: float  # of an empty message, one way
    bytes_per_second: float  # of a long one, both directions at once

    def seconds(self, messages: float, num_bytes: float) -> float:
        """What `messages` one after another, `num_bytes` in all, take."""
        return messages * self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class CostModel:
    """What moving data costs between nodes, inside a node, and inside a rank, and computing."""

    # a message to a rank of another node (the same as `node` where there is one node)
    network: Link
    node: Link  # a message to a rank of the same node
    # bytes copied by one rank while all ranks of the node copy (read once, written once)
    copy_bytes_per_second: float = 10e9
    entry_seconds: float = 5e-9  # to merge or code one entry of a sparse vector, likewise
    flops_per_second: float = 100e9  # of one rank's products

    @staticmethod
    def one_link(link: Link, flops_per_second: float = 100e9) -> "CostModel":
        """All ranks are joined by the same kind of link."""
        return CostModel(link, link, flops_per_second=flops_per_second)

    def seconds(
        self, messages: float, words: float, word_bytes: int = 4, between_nodes: bool = True
    ) -> float:
        """What a rank's `messages`, one after another, with `words` in all take."""
        return (self.network if between_nodes else self.node).seconds(messages, words * word_bytes)

    def copy_seconds(self, words: float, word_bytes: int = 4) -> float:
        """What reading and writing `words` once takes."""
        return words * word_bytes / self.copy_bytes_per_second

    def compute_seconds(self, flops: float) -> float:
        """What `flops` operations of one rank's products take."""
        return flops / self.flops_per_second

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> "CostModel":
        numbers = {
            name: float(value) for name, value in mapping.items() if name not in ("network", "node")
        }
        return CostModel(Link(**mapping["network"]), Link(**mapping["node"]), **numbers)


def fit(samples: Sequence[tuple[float, float]]) -> Link:
    """The link through (bytes, seconds) samples, with least squares of the relative error, so that
    short messages count too.

    Minimises sum (latency / t + b x / t - 1)^2 over latency and x = 1 / rate; either is kept above
    zero.
    """
    assert len(samples) >= 2, "two sizes at least tell latency and rate apart"
    ones = [1 / seconds for _, seconds in samples]
    sizes = [num_bytes / seconds for num_bytes, seconds in samples]
    a, b, d = _dot(ones, ones), _dot(ones, sizes), _dot(sizes, sizes)
    p, q = sum(ones), sum(sizes)
    determinant = a * d - b * b
    latency = (p * d - q * b) / determinant if determinant > 0 else 0.0
    per_byte = (q * a - p * b) / determinant if determinant > 0 else p / b
    fastest = min(seconds for _, seconds in samples)
    largest_bytes, largest_seconds = max(samples)
    return Link(
        max(latency, fastest / 100),
        1 / per_byte if per_byte > 0 else largest_bytes / largest_seconds,
    )


def interpolate(seconds_by_size: Mapping[int, float], size: float) -> float:
    """Seconds at `size` between two measured sizes, along the logarithms of both; beyond the
    smallest and the largest, theirs.
    """
    sizes = sorted(seconds_by_size)
    upper = next((each for each in sizes if each >= size), sizes[-1])
    lower = max((each for each in sizes if each <= size), default=sizes[0])
    share = 0.0 if upper <= lower else math.log(size / lower) / math.log(upper / lower)
    low, high = math.log(seconds_by_size[lower]), math.log(seconds_by_size[upper])
    return math.exp(low + share * (high - low))


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
