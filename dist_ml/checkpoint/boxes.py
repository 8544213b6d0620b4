"""Boxes: the regions of a tensor that are written and read as one."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dist_ml.partition import Range
from dist_ml.placement import Region


def size_of(region: Region) -> tuple[int, ...]:
    """The shape of a region's values."""
    return tuple(side.size for side in region)


def num_elements(region: Region) -> int:
    return math.prod(size_of(region))


def intersection(a: Region, b: Region) -> Region:
    """The common part of two regions of one tensor; some side is empty where there is none."""
    return tuple(mine.intersect(other) for mine, other in zip(a, b, strict=True))


def slices_within(part: Region, region: Region) -> tuple[slice, ...]:
    """Where `part` lies in the values of `region`, which contains it."""
    return tuple(
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in zip(part, region, strict=True)
    )


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> list[Region]:
    """The row-major positions [start, stop) of a tensor as boxes: at most 2d-1 of d dims.

    In order, so that the values of the range, cut one after the other, are those of the boxes. An
    empty range has none. This is what a shard of a flat buffer (ZeRO) holds of a tensor.
    """
    assert 0 <= start <= stop <= math.prod(shape), (shape, start, stop)
    if start == stop:
        return []
    if not shape:
        return [()]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows are [first, last)
    if first > last:  # within one row
        return _in_row(shape, last, start - last * row, stop - last * row)
    whole: Region = (Range(first, last), *(Range(0, n) for n in shape[1:]))
    return [
        *_in_row(shape, first - 1, start - (first - 1) * row, row),
        *([whole] if first < last else []),
        *_in_row(shape, last, 0, stop - last * row),
    ]


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> list[Region]:
    inner = boxes_of_range(shape[1:], start, stop) if start < stop else []
    return [(Range(index, index + 1), *box) for box in inner]


@lru_cache(maxsize=1 << 12)  # most models repeat a few shapes
def fill(boxes: frozenset[Region], region: Region) -> bool:
    """Are `boxes` the whole of `region`, without overlap? They must lie in it."""
    if sum(map(num_elements, boxes)) != num_elements(region):
        return False
    sides = np.array([box for box in boxes if num_elements(box)], np.int64)
    if sides.shape[0] < 2 or not region:
        return True
    starts, stops = sides[..., 0], sides[..., 1]
    overlaps = (np.maximum(starts[:, None], starts) < np.minimum(stops[:, None], stops)).all(-1)
    return bool(overlaps.sum() == len(sides))  # each with itself only
