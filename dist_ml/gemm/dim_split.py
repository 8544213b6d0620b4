"""How one dim of a matrix is split over the axes of a grid."""

from collections.abc import Iterator
from typing import NamedTuple

from dist_ml import partition
from dist_ml.partition import Range


class DimSplit(NamedTuple):
    """Split one dim over a grid axis: a balanced block an owner, or, with `block`, blocks of that
    many dealt in turn.
    """

    axis: int
    block: int | None = None


def owned_ranges(
    n: int, splits: tuple[DimSplit, ...], grid: tuple[int, ...], coordinates: tuple[int, ...]
) -> tuple[Range, ...]:
    """The global indices, of `n`, that the rank at `coordinates` of the grid owns, in storage
    order. The splits apply one after the other, each to what the ones before it left.
    """
    owned: tuple[Range, ...] = (Range(0, n),)
    for split in splits:
        length = sum(r.size for r in owned)
        parts, part = grid[split.axis], coordinates[split.axis]
        if split.block is None:
            taken = [partition.block(length, parts, part)]
        else:
            taken = [
                piece
                for i, piece in enumerate(partition.pieces(length, split.block))
                if i % parts == part
            ]
        owned = tuple(r for positions in taken for r in _take(owned, positions))
    return tuple(r for r in owned if r.size)


def describe(splits: tuple[DimSplit, ...]) -> str:
    """`axis0 in blocks of 2`; `whole` without splits."""
    return (
        "+".join(f"axis{s.axis}" + (f" in blocks of {s.block}" if s.block else "") for s in splits)
        or "whole"
    )


def _take(ranges: tuple[Range, ...], positions: Range) -> Iterator[Range]:
    """The global ranges at `positions` of the concatenated `ranges`."""
    before = 0
    for r in ranges:
        part = Range(before, before + r.size).intersect(positions)
        if part.size:
            yield Range(r.start + part.start - before, r.start + part.stop - before)
        before += r.size
