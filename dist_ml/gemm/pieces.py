"""Pieces: the rectangles of a matrix that a rank's storage holds, and where in it they lie."""

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from dist_ml.partition import Range


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

    def moved(self, rows: int, cols: int) -> "Piece":
        """The piece with that many added to its global rows and columns."""
        return self._replace(rows=_shift(self.rows, rows), cols=_shift(self.cols, cols))


def product_pieces(rows: tuple[Range, ...], cols: tuple[Range, ...]) -> Iterator[Piece]:
    """The local matrix is the rows x cols product, stored row-major."""
    width = sum(c.size for c in cols)
    row = 0
    for r in rows:
        col = 0
        for c in cols:
            yield Piece(r, c, row * width + col, width, 1)
            col += c.size
        row += r.size


def rectangles(flat: Range, width: int, stored: int) -> Iterator[Piece]:
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


def starts(counts: tuple[int, ...]) -> list[int]:
    """Where each share begins when shares lie one after the other."""
    return [0, *accumulate(counts)][:-1]


def _shift(r: Range, by: int) -> Range:
    return Range(r.start + by, r.stop + by)
