"""The ranks of the operator axis as a grid, over whose sides layers are cut.

    copies   each holds the same weights, and a part of the rows
    rows     parts of the rows; each holds a part of the weights
    first    outputs of one layer, inputs of the next
    second   inputs of one layer, outputs of the next

A side of one rank cuts nothing: 1-D layers use `first` alone, 2-D ones `rows` and `first`.
"""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import coordinates_of
from dist_ml.errors import ConfigError
from dist_ml.models.spread import Cut


class Sides(NamedTuple):
    """How many ranks lie along each side."""

    copies: int = 1
    rows: int = 1
    first: int = 1
    second: int = 1

    @property
    def num_ranks(self) -> int:
        return prod(self)


class Place:
    """Where one rank of a grid is; needs no communication.

    A `rank` that several sides order is counted row-major, `second` fastest.
    """

    def __init__(self, sides: Sides, rank: int) -> None:
        self.sides = sides
        self._own = dict(zip(Sides._fields, coordinates_of(rank, sides), strict=True))

    def size(self, *sides: str) -> int:
        """Ranks along these sides together."""
        return prod(getattr(self.sides, side) for side in sides)

    def cuts(self, *sides: str) -> tuple[Cut, ...]:
        """Cuts along these sides, without those that cut nothing."""
        return tuple(
            Cut(side, self.size(side), self._own[side]) for side in sides if self.size(side) > 1
        )

    def position(self, sides: Iterable[str]) -> int:
        """Among the ranks that differ along `sides` alone."""
        position = 0
        for side in sides:
            position = position * self.size(side) + self._own[side]
        return position


# Communicators are made with the grid, so that later nothing is collective that needn't be.
_USED_TOGETHER = (
    (),
    ("copies",),
    ("rows",),
    ("first",),
    ("second",),
    ("copies", "rows"),
    ("copies", "rows", "first"),
    ("copies", "rows", "second"),
)


class OperatorGrid(Place):
    """The ranks of `comm` in row-major order over `sides`. Collective.

    `num_rows`: of the activation that passes through now, over all ranks; each layer that gets one
    with whole rows says so.
    """

    def __init__(self, comm: Communicator, sides: Sides) -> None:
        if sides.num_ranks != comm.size:
            raise ConfigError(
                f"a grid of {' x '.join(map(str, sides))} has {sides.num_ranks} ranks, but "
                f"mesh.operator={comm.size}; choose sides whose product is {comm.size}"
            )
        super().__init__(sides, comm.rank)
        self.comm = comm
        self.num_rows = 0
        self._comms: dict[tuple[str, ...], Communicator] = {}
        for wanted in _USED_TOGETHER:
            self._make(self._cutting(wanted))

    def along(self, *sides: str) -> Communicator:
        """The ranks that differ from this one along `sides` alone, in row-major order."""
        return self._comms[self._cutting(sides)]

    def _cutting(self, sides: Iterable[str]) -> tuple[str, ...]:
        wanted = set(sides)
        return tuple(side for side in Sides._fields if side in wanted and self.size(side) > 1)

    def _make(self, wanted: tuple[str, ...]) -> None:
        if wanted in self._comms:
            return
        others = [side for side in Sides._fields if side not in wanted]
        made = self.comm.split(self.position(others), self.position(wanted))
        assert made is not None
        self._comms[wanted] = made
