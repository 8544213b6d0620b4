"""Which part of a tensor this rank holds.

Everything that must know asks the tensor's share and nothing else: initial weights (a region is a
slice of the same stream of numbers as the whole's), global norms (each element counts once), what
must be summed densely, and what a state dict gathers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dist_ml.partition import Range

Region: TypeAlias = tuple[Range, ...]


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


def whole_shape(tensor: Any) -> tuple[int, ...]:
    """The shape of the whole of which a parameter is a share."""
    share = share_of(tensor)
    return tuple(tensor.shape) if share is None else share.shape


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
