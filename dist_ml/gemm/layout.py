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

from dataclasses import dataclass, replace
from math import prod

from dist_ml.errors import ConfigError
from dist_ml.gemm import dim_split
from dist_ml.gemm.dim_split import DimSplit, owned_ranges
from dist_ml.gemm.owned_pieces import owned_pieces
from dist_ml.gemm.pieces import Piece
from dist_ml.gemm.segments import Cuts, owned_words, segments, shares
from dist_ml.partition import Range


@dataclass(frozen=True)
class Layout:
    """A rows x cols matrix over `grid`. See the module's text; `layouts` builds the usual ones.

    `row_segments` and `col_segments` (flat layouts only) cut each block into consecutive segments,
    each dealt over the flat axis on its own: the segments are what an algorithm gathers or reduces
    step by step. (3, 2) cuts a dim into three, and each of those into two. They lie in storage
    order: along the columns first, or along the rows first where `column_major`.
    """

    rows: int
    cols: int
    grid: tuple[int, ...]
    row_splits: tuple[DimSplit, ...] = ()
    col_splits: tuple[DimSplit, ...] = ()
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
        return owned_ranges(self.rows, self.row_splits, self.grid, self.coordinates(rank))

    def col_ranges(self, rank: int) -> tuple[Range, ...]:
        return owned_ranges(self.cols, self.col_splits, self.grid, self.coordinates(rank))

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
        rows, cols = self.block_shape(rank)
        if self.flat_axis is None or rank >= self.num_ranks:
            return rows * cols
        owner = self.coordinates(rank)[self.flat_axis]
        return owned_words(*self._stored(rows, cols), self.grid[self.flat_axis], owner)

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """What the rank owns. Pieces don't overlap, and fill its storage of `num_words`
        elements.
        """
        return owned_pieces(self, rank)

    def segment_counts(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """For each segment of the rank's block, in storage order: how many elements each rank along
        the flat axis holds.
        """
        assert self.flat_axis is not None
        return shares(*self._stored(*self.block_shape(rank)), self.grid[self.flat_axis])

    def segment_shapes(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each segment of the rank's block, in storage order."""
        cut = segments(*self._stored(*self.block_shape(rank)))
        if self.column_major:
            return tuple((r.size, c.size) for c, r in cut)
        return tuple((r.size, c.size) for r, c in cut)

    def segment(self, row: int, col: int) -> int:
        """The place, in storage order, of the segment that is the `row`-th along the rows and the
        `col`-th along the columns.
        """
        return (
            col * prod(self.row_segments) + row
            if self.column_major
            else row * prod(self.col_segments) + col
        )

    def _stored(self, rows: int, cols: int) -> tuple[int, int, Cuts, Cuts]:
        """A block's sizes and cuts along the stored rows and along the stored columns."""
        if self.column_major:
            return cols, rows, self.col_segments, self.row_segments
        return rows, cols, self.row_segments, self.col_segments

    def describe(self) -> str:
        """One line for people: `4096 x 4096 over 2 x 2 x 1: rows/axis0, cols/axis1, dealt over axis
        2`.
        """
        dealt = f", dealt over axis{self.flat_axis}" if self.flat_axis is not None else ""
        order = ", column-major" if self.column_major else ""
        grid = " x ".join(map(str, self.grid))
        rows, cols = dim_split.describe(self.row_splits), dim_split.describe(self.col_splits)
        return f"{self.rows} x {self.cols} over {grid}: rows {rows}, cols {cols}{dealt}{order}"
