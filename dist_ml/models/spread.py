"""How an activation lies on the ranks that share a model's layers, as this rank sees it.

An activation is [rows, ..., features]. Rows (samples, or tokens) and features can each be cut along
axes of the ranks' grid, one after the other, in balanced blocks; what isn't cut is whole on every
rank. Values; no communication.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dist_ml.partition import Range, block


class Cut(NamedTuple):
    """One axis of the grid: into how many parts it cuts, and which one is this rank's."""

    axis: str
    parts: int
    own: int


@dataclass(frozen=True)
class Spread:
    """The cuts of rows and of features, in the order in which they are made."""

    rows: tuple[Cut, ...] = ()
    features: tuple[Cut, ...] = ()

    def row_range(self, num_rows: int) -> Range:
        """The rows that this rank holds."""
        return own_range(num_rows, self.rows)

    def feature_range(self, num_features: int, unit: int = 1) -> Range:
        """The features that this rank holds; groups of `unit` of them (a head's) stay together."""
        return own_range(num_features, self.features, unit)

    @property
    def is_whole(self) -> bool:
        """Does every rank hold all of it?"""
        return not self.rows and not self.features


WHOLE = Spread()


def axes_of(cuts: tuple[Cut, ...]) -> tuple[str, ...]:
    """The axes that cut."""
    return tuple(cut.axis for cut in cuts)


def own_range(n: int, cuts: tuple[Cut, ...], unit: int = 1) -> Range:
    """Of `n` elements in groups of `unit`, cut by `cuts` one after the other, this rank's."""
    assert n % unit == 0, (n, unit)
    start, size = 0, n // unit
    for _, parts, own in cuts:
        part = block(size, parts, own)
        start, size = start + part.start, part.size
    return Range(start * unit, (start + size) * unit)
