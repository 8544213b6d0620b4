"""Layouts: which rank owns which element of a matrix, and where in the rank's memory it lies.
Values; no communication.

A layout maps a rows x cols matrix onto a grid of ranks (row-major; ranks beyond the grid own
nothing). Each dim of the matrix is split over grid axes, one after the other, in balanced blocks or
block-cyclically. A grid axis that no split uses holds replicas, unless it is the `flat_axis`: then
every block is flattened in its storage order and dealt evenly over that axis, to the element, which
is what makes an allgather's result the block itself, with nothing to unpack.

What a rank owns is described by `Piece`s: rectangles of global indices, each with its place in the
rank's flat storage.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

from dist_ml import partition
from dist_ml.errors import ConfigError
from dist_ml.partition import Range


class Split(NamedTuple):
    """Split one dim over a grid axis: a balanced block an owner, or, with `block`, blocks of that
    many dealt in turn.
    """

    axis: int
    block: int | None = None


class Piece(NamedTuple):
    """A rectangle of the matrix in a rank's storage: element (rows.start + i, cols.start + j) is at
    offset + i rs + j cs.
    """

    rows: Range
    cols: Range
    offset: int
    row_stride: int
    col_stride: int

    @property
    def size(self) -> int:
        return self.rows.size * self.cols.size

    @property
    def transposed(self) -> "Piece":
        return Piece(self.cols, self.rows, self.offset, self.col_stride, self.row_stride)


@dataclass(frozen=True)
class Layout:
    """A rows x cols matrix over `grid`. See the module's text; the functions below build the usual
    ones.

    `row_segments` and `col_segments` (flat layouts only) cut each block into consecutive segments,
    each dealt over the flat axis on its own: the segments are what an algorithm gathers or reduces
    step by step. (3, 2) cuts a dim into three, and each of those into two. They lie in storage
    order: along the columns first, or along the rows first where `column_major`.
    """

    rows: int
    cols: int
    grid: tuple[int, ...]
    row_splits: tuple[Split, ...] = ()
    col_splits: tuple[Split, ...] = ()
    flat_axis: int | None = None
    row_segments: tuple[int, ...] = ()
    col_segments: tuple[int, ...] = ()
    column_major: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0:
            raise ConfigError(
                f"a matrix of {self.rows} x {self.cols} has a negative size; sizes must be 0 or "
                "more"
            )
        if not self.grid or min(self.grid) < 1:
            raise ConfigError(f"grid {self.grid} has a side below 1; every side must be at least 1")
        used = [split.axis for split in (*self.row_splits, *self.col_splits)] + [
            a for a in [self.flat_axis] if a is not None
        ]
        assert len(set(used)) == len(used), used
        assert all(0 <= axis < len(self.grid) for axis in used), (used, self.grid)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def num_ranks(self) -> int:
        """The ranks of the grid; those beyond own nothing."""
        return prod(self.grid)

    @property
    def transposed(self) -> "Layout":
        """The layout of the transpose whose every element stays where it is."""
        return replace(
            self,
            rows=self.cols,
            cols=self.rows,
            row_splits=self.col_splits,
            col_splits=self.row_splits,
            row_segments=self.col_segments,
            col_segments=self.row_segments,
            column_major=not self.column_major,
        )

    @property
    def replicas(self) -> int:
        """How many ranks own each element."""
        return prod(self.grid[axis] for axis in self.replica_axes)

    @property
    def replica_axes(self) -> tuple[int, ...]:
        used = {split.axis for split in (*self.row_splits, *self.col_splits)} | {self.flat_axis}
        return tuple(axis for axis in range(len(self.grid)) if axis not in used)

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Row-major: the last side of the grid varies fastest."""
        found = []
        for side in reversed(self.grid):
            rank, at = divmod(rank, side)
            found.append(at)
        return tuple(reversed(found))

    def row_ranges(self, rank: int) -> tuple[Range, ...]:
        """The global rows of the rank's block, in storage order (before it is dealt over the flat
        axis).
        """
        return _ranges(self.rows, self.row_splits, self.grid, self.coordinates(rank))

    def col_ranges(self, rank: int) -> tuple[Range, ...]:
        return _ranges(self.cols, self.col_splits, self.grid, self.coordinates(rank))

    def block_shape(self, rank: int) -> tuple[int, int]:
        """Rows and columns of the rank's block; (0, 0) beyond the grid. For layouts without a flat
        axis: the local matrix.
        """
        if rank >= self.num_ranks:
            return 0, 0
        return sum(r.size for r in self.row_ranges(rank)), sum(
            c.size for c in self.col_ranges(rank)
        )

    def num_words(self, rank: int) -> int:
        """How many elements the rank stores."""
        return sum(piece.size for piece in self.pieces(rank))

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """What the rank owns. Pieces don't overlap, and fill its storage of `num_words`
        elements.
        """
        return _pieces(self, rank)

    def segment_counts(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """For each segment of the rank's block, in storage order: how many elements each rank along
        the flat axis holds.
        """
        rows, cols = self.block_shape(rank)
        return (
            _segment_counts(self.transposed, cols, rows)
            if self.column_major
            else _segment_counts(self, rows, cols)
        )

    def segment_shapes(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each segment of the rank's block, in storage order."""
        rows, cols = self.block_shape(rank)
        if self.column_major:
            return tuple((r.size, c.size) for c, r in _segments(self.transposed, cols, rows))
        return tuple((r.size, c.size) for r, c in _segments(self, rows, cols))

    def segment(self, row: int, col: int) -> int:
        """The place, in storage order, of the segment that is the `row`-th along the rows and the
        `col`-th along the columns.
        """
        return (
            col * prod(self.row_segments) + row
            if self.column_major
            else row * prod(self.col_segments) + col
        )

    def describe(self) -> str:
        """One line for people: `4096 x 4096 over 2 x 2 x 1: rows/axis0, cols/axis1, dealt over axis
        2`.
        """
        dealt = f", dealt over axis{self.flat_axis}" if self.flat_axis is not None else ""
        order = ", column-major" if self.column_major else ""
        grid = " x ".join(map(str, self.grid))
        rows, cols = _spell(self.row_splits), _spell(self.col_splits)
        return f"{self.rows} x {self.cols} over {grid}: rows {rows}, cols {cols}{dealt}{order}"


def block_rows(rows: int, cols: int, ranks: int) -> Layout:
    """1-D: a balanced block of rows a rank."""
    return Layout(rows, cols, (ranks,), row_splits=(Split(0),))


def block_cols(rows: int, cols: int, ranks: int) -> Layout:
    """1-D: a balanced block of columns a rank."""
    return Layout(rows, cols, (ranks,), col_splits=(Split(0),))


def block_2d(rows: int, cols: int, grid: tuple[int, int]) -> Layout:
    """2-D: rank (i, j) of the grid owns block (i, j)."""
    return Layout(rows, cols, grid, (Split(0),), (Split(1),))


def block_cyclic(rows: int, cols: int, grid: tuple[int, int], block: tuple[int, int]) -> Layout:
    """ScaLAPACK's: blocks of `block` elements are dealt in turn over both sides of the grid."""
    if min(block) < 1:
        raise ConfigError(f"block {block} must be at least 1 x 1")
    return Layout(rows, cols, grid, (Split(0, block[0]),), (Split(1, block[1]),))


def block_25d(rows: int, cols: int, grid: tuple[int, int, int], replicated: bool = False) -> Layout:
    """2.5-D: blocks over the first two sides; the layers (third side) share each block evenly, or
    each hold a replica of it.
    """
    return Layout(rows, cols, grid, (Split(0),), (Split(1),), flat_axis=None if replicated else 2)


def block_3d(
    rows: int, cols: int, grid: tuple[int, int, int], axes: tuple[int, int, int] = (0, 1, 2)
) -> Layout:
    """3-D: rows over grid side axes[0], columns over axes[1], and each block dealt evenly over
    axes[2].
    """
    return Layout(rows, cols, grid, (Split(axes[0]),), (Split(axes[1]),), flat_axis=axes[2])


def on_one_rank(rows: int, cols: int) -> Layout:
    """All of it on rank 0."""
    return Layout(rows, cols, (1,))


def _spell(splits: tuple[Split, ...]) -> str:
    return (
        "+".join(f"axis{s.axis}" + (f" in blocks of {s.block}" if s.block else "") for s in splits)
        or "whole"
    )


def _ranges(
    n: int, splits: tuple[Split, ...], grid: tuple[int, ...], coordinates: tuple[int, ...]
) -> tuple[Range, ...]:
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


def _take(ranges: tuple[Range, ...], positions: Range) -> Iterator[Range]:
    """The global ranges at `positions` of the concatenated `ranges`."""
    before = 0
    for r in ranges:
        part = Range(before, before + r.size).intersect(positions)
        if part.size:
            yield Range(r.start + part.start - before, r.start + part.stop - before)
        before += r.size


@lru_cache(maxsize=4096)
def _pieces(layout: Layout, rank: int) -> tuple[Piece, ...]:
    if rank >= layout.num_ranks:
        return ()
    if layout.column_major:
        return tuple(piece.transposed for piece in _pieces(layout.transposed, rank))
    rows, cols = layout.row_ranges(rank), layout.col_ranges(rank)
    if layout.flat_axis is None:
        return tuple(_product_pieces(rows, cols))
    if not rows or not cols:
        return ()
    assert len(rows) == len(cols) == 1, (
        "a block that is dealt over a flat axis must be one rectangle"
    )
    return tuple(_flat_pieces(layout, rank, rows[0], cols[0]))


def _product_pieces(rows: tuple[Range, ...], cols: tuple[Range, ...]) -> Iterator[Piece]:
    """The local matrix is the rows x cols product, stored row-major."""
    width = sum(c.size for c in cols)
    row = 0
    for r in rows:
        col = 0
        for c in cols:
            yield Piece(r, c, row * width + col, width, 1)
            col += c.size
        row += r.size


def _flat_pieces(layout: Layout, rank: int, rows: Range, cols: Range) -> Iterator[Piece]:
    assert layout.flat_axis is not None
    owner, stored = layout.coordinates(rank)[layout.flat_axis], 0
    for (r, c), counts in zip(
        _segments(layout, rows.size, cols.size), layout.segment_counts(rank), strict=True
    ):
        start = sum(counts[:owner])
        for piece in _rectangles(Range(start, start + counts[owner]), max(1, c.size), stored):
            top, left = rows.start + r.start, cols.start + c.start
            yield Piece(_shift(piece.rows, top), _shift(piece.cols, left), *piece[2:])
        stored += counts[owner]


def _segments(layout: Layout, rows: int, cols: int) -> list[tuple[Range, Range]]:
    cut_rows, cut_cols = (
        partition.nested_blocks(*cut)
        for cut in ((rows, layout.row_segments), (cols, layout.col_segments))
    )
    return [(r, c) for r in cut_rows for c in cut_cols]


@lru_cache(maxsize=4096)
def _segment_counts(layout: Layout, rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """Each segment's balanced shares; who gets one more goes round from segment to segment, so that
    the totals balance too.
    """
    assert layout.flat_axis is not None
    parts, turn, counts = layout.grid[layout.flat_axis], 0, []
    for r, c in _segments(layout, rows, cols):
        shares = partition.counts(r.size * c.size, parts)
        counts.append(tuple(shares[(owner - turn) % parts] for owner in range(parts)))
        turn = (turn + r.size * c.size) % parts
    return tuple(counts)


def _rectangles(flat: Range, width: int, stored: int) -> Iterator[Piece]:
    """The rectangles that cover positions `flat` of a row-major block of `width` columns: a part
    row, whole rows, a part row.
    """
    position = flat.start
    while position < flat.stop:
        row, col = divmod(position, width)
        whole = (flat.stop - position) // width if col == 0 else 0
        height, length = (whole, width) if whole else (1, min(width - col, flat.stop - position))
        yield Piece(
            Range(row, row + height),
            Range(col, col + length),
            stored + position - flat.start,
            width,
            1,
        )
        position += height * length


def _shift(r: Range, by: int) -> Range:
    return Range(r.start + by, r.stop + by)


def starts(counts: tuple[int, ...]) -> list[int]:
    """Where each share begins when shares lie one after the other."""
    return [0, *accumulate(counts)][:-1]
