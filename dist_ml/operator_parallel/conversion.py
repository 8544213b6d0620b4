"""From how an activation lies to how the next layer wants it."""

from typing import TypeAlias

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.models.spread import Cut, Spread, axes_of
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.partition import nested_blocks

Cuts: TypeAlias = tuple[Cut, ...]


class Conversion:
    """Brings an activation from `given` to `wanted`; nothing where they are the same.

    What differs is made whole on all ranks, rows then features, and cut again. Words: those of an
    allgather along each cut that is undone, and, backward, along each that is made.
    """

    def __init__(
        self,
        given: Spread,
        wanted: Spread,
        grid: OperatorGrid,
        num_features: int,
        unit: int = 1,
    ) -> None:
        self._grid = grid
        self._num_features, self._unit = num_features, unit
        self._tells_rows = not given.rows
        self._rows = (given.rows, wanted.rows) if given.rows != wanted.rows else None
        changed = given.features != wanted.features
        self._features = (given.features, wanted.features) if changed else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, …, features], this rank's part."""
        if self._tells_rows:
            self._grid.num_rows = len(x)
        if self._rows is not None:
            x = self._cut_anew(x, *self._rows, self._grid.num_rows)
        if self._features is not None:
            x = self._cut_anew(x.movedim(-1, 0), *self._features, self._num_features, self._unit)
            x = x.movedim(0, -1).contiguous()
        return x

    def _cut_anew(
        self, x: torch.Tensor, given: Cuts, wanted: Cuts, n: int, unit: int = 1
    ) -> torch.Tensor:
        """x along its dimension 0, of `n` in groups of `unit` over all ranks."""
        if given:
            x = collectives.whole(x, self._along(given), _sizes(n, given, unit))
        if wanted:
            x = collectives.part(x, self._along(wanted), _sizes(n, wanted, unit))
        return x

    def _along(self, cuts: Cuts) -> Communicator:
        return self._grid.along(*axes_of(cuts))


def _sizes(n: int, cuts: Cuts, unit: int) -> list[int]:
    """Of `n` elements, how many each rank along `cuts` holds, in row-major order of the cuts."""
    parts = [cut.parts for cut in cuts]
    return [part.size * unit for part in nested_blocks(n // unit, parts)]
