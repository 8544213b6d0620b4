"""Where a tensor lies on a mesh: which region of it each rank owns.

    Placement({"operator": Shard(0)})    rows split over the operator axis, copied along the others

Everything that must know who owns what asks a placement and nothing else: initial weights (a region
is a slice of the same stream of numbers), global norms (each element counts once), the sum of a
gradient (over the axes that hold copies), and what a checkpoint writes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dist_ml.errors import MeshError
from dist_ml.partition import Range, block

Region: TypeAlias = tuple[Range, ...]


@dataclass(frozen=True)
class Replicate:
    """Every coordinate of the axis holds the same."""


@dataclass(frozen=True)
class Shard:
    """The coordinates of the axis hold consecutive blocks of dimension `dim`, in order."""

    dim: int


Part: TypeAlias = Replicate | Shard


@dataclass(frozen=True)
class Placement:
    """How one tensor lies along the axes of a mesh; an axis that isn't named holds copies.

    Several axes may split the same dimension: they split it one after the other, in the order in
    which they are named.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)

    def region(
        self, shape: Sequence[int], sizes: Mapping[str, int], coordinates: Mapping[str, int]
    ) -> Region:
        """The ranges, one a dimension, of a tensor of the global `shape` that the rank at
        `coordinates` of a mesh of `sizes` owns; empty where there are fewer rows than ranks.

        `MeshError` for a dimension that the tensor lacks.
        """
        ranges = [Range(0, n) for n in shape]
        for axis, part in self.parts.items():
            if isinstance(part, Replicate):
                continue
            if not 0 <= part.dim < len(shape):
                raise MeshError(
                    f"axis {axis} can't split dimension {part.dim} of a tensor of shape "
                    f"{list(shape)}; its dimensions go from 0 to {len(shape) - 1}"
                )
            whole = ranges[part.dim]
            own = block(whole.size, sizes[axis], coordinates[axis])
            ranges[part.dim] = Range(whole.start + own.start, whole.start + own.stop)
        return tuple(ranges)

    def num_copies(self, sizes: Mapping[str, int]) -> int:
        """How many ranks of a mesh of `sizes` own each element."""
        return math.prod(size for axis, size in sizes.items() if not self._splits(axis))

    def gradient_axes(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of the mesh that hold copies: over these the copies' gradients are summed."""
        return tuple(axis for axis in sizes if not self._splits(axis))

    def _splits(self, axis: str) -> bool:
        return isinstance(self.parts.get(axis), Shard)


@dataclass(frozen=True)
class Share:
    """The part of a global tensor that this rank holds, where layers are split: a layer that makes
    a parameter of a part puts one on it (`parameter.share`).

    `num_copies`: how many ranks of the operator axis hold the same part.
    """

    shape: tuple[int, ...]  # of the whole
    region: Region
    num_copies: int


def share_of(tensor: Any) -> Share | None:
    """The share that a parameter is; None where it is whole on every rank that has it."""
    share: Share | None = getattr(tensor, "share", None)
    return share


def flat_positions(region: Region, shape: Sequence[int]) -> NDArray[np.int64]:
    """The row-major positions, in the whole tensor, of a region's elements, in the region's own
    row-major order: int64 of the region's shape.
    """
    positions = np.zeros((), np.int64)
    for part, n in zip(region, shape, strict=True):
        positions = positions[..., None] * n + np.arange(part.start, part.stop, dtype=np.int64)
    return positions


def whole(shape: Sequence[int]) -> Region:
    """The region that is all of a tensor."""
    return tuple(Range(0, n) for n in shape)
