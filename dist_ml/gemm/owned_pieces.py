"""What a rank owns of a layout, piece by piece."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from dist_ml.gemm.pieces import Piece, product_pieces, rectangles
from dist_ml.gemm.segments import segments
from dist_ml.partition import Range

if TYPE_CHECKING:
    from dist_ml.gemm.layout import Layout


@lru_cache(maxsize=4096)
def owned_pieces(layout: "Layout", rank: int) -> tuple[Piece, ...]:
    """`Layout.pieces`."""
    if rank >= layout.num_ranks:
        return ()
    if layout.column_major:
        return tuple(piece.transposed for piece in owned_pieces(layout.transposed, rank))
    rows, cols = layout.row_ranges(rank), layout.col_ranges(rank)
    if layout.flat_axis is None:
        return tuple(product_pieces(rows, cols))
    if not rows or not cols:
        return ()
    assert len(rows) == len(cols) == 1, (
        "a block that is dealt over a flat axis must be one rectangle"
    )
    return tuple(_flat_pieces(layout, rank, rows[0], cols[0]))


def _flat_pieces(layout: "Layout", rank: int, rows: Range, cols: Range) -> Iterator[Piece]:
    assert layout.flat_axis is not None
    owner, stored = layout.coordinates(rank)[layout.flat_axis], 0
    cut = segments(rows.size, cols.size, layout.row_segments, layout.col_segments)
    for (r, c), counts in zip(cut, layout.segment_counts(rank), strict=True):
        start = sum(counts[:owner])
        for piece in rectangles(Range(start, start + counts[owner]), max(1, c.size), stored):
            yield piece.moved(rows.start + r.start, cols.start + c.start)
        stored += counts[owner]
