"""Many integer grids at once, as arrays: those that a search looks at.

For fixed (pm, pn) the mean words are monotone in pk, so the two ends bound all between them, and
100,000 ranks take a tenth of a second.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dist_ml.gemm.product_shape import ProductShape

Ints: TypeAlias = npt.NDArray[np.int64]

# At most this share of the ranks may stay idle when that saves words; more would cost more time
# computing than it saves.
MAX_IDLE = 0.03


class Grids(NamedTuple):
    """Many grids: one array a side."""

    pm: Ints
    pn: Ints
    pk: Ints

    def where(self, mask: npt.NDArray[np.bool_] | Ints) -> "Grids":
        return Grids(self.pm[mask], self.pn[mask], self.pk[mask])

    def with_more(self, other: "Grids") -> "Grids":
        return Grids(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def end_grids(shape: ProductShape, max_idle: float) -> Grids:
    """Every (pm, pn), with the fewest and with the most ranks along K that leave at most `max_idle`
    of the ranks idle.
    """
    m, n, k = shape.sides
    counts = np.array(
        [min(shape.ranks // pm, n) for pm in range(1, min(shape.ranks, m) + 1)], dtype=np.int64
    )
    pm = np.repeat(np.arange(1, counts.size + 1), counts)
    pn = np.arange(pm.size) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    most = np.minimum(shape.ranks // (pm * pn), k)
    fewest = -(-min(at_work(shape, max_idle), int((pm * pn * most).max())) // (pm * pn))
    low, high = (
        Grids(pm, pn, fewest).where(fewest <= most),
        Grids(pm, pn, most).where(fewest <= most),
    )
    return low.with_more(high)


def grids_between(shape: ProductShape, ends: Grids, max_idle: float) -> Grids:
    """The grids of the given pairs (pm, pn) with any pk that leaves at most `max_idle` of the ranks
    idle.
    """
    pairs = np.unique(np.stack([ends.pm, ends.pn]), axis=1)
    pm, pn = pairs[0], pairs[1]
    most = np.minimum(shape.ranks // (pm * pn), shape.sides[2])
    fewest = np.minimum(-(-at_work(shape, max_idle) // (pm * pn)), most)
    counts = most - fewest + 1
    above = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return Grids(np.repeat(pm, counts), np.repeat(pn, counts), np.repeat(fewest, counts) + above)


def at_work(shape: ProductShape, max_idle: float = MAX_IDLE) -> int:
    """The fewest ranks that must have work."""
    return max(1, int(np.ceil(shape.ranks * (1 - max_idle))))
