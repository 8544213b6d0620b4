"""What layouts are made of: splits, segments and pieces, against lists of single indices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ml.gemm import dim_split
from dist_ml.gemm.dim_split import DimSplit, owned_ranges
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.pieces import Piece, product_pieces, rectangles, starts
from dist_ml.gemm.segments import owned_words, segments, shares
from dist_ml.partition import Range

cuts = st.lists(st.integers(1, 4), max_size=2).map(tuple)
lengths = st.integers(0, 30)


def owned_indices(n: int, splits: list[DimSplit], grid: tuple[int, ...], at: tuple[int, ...]):
    """Index by index: each split keeps the positions that are its owner's."""
    owned = list(range(n))
    for split in splits:
        parts, part = grid[split.axis], at[split.axis]
        if split.block is None:
            size, larger = divmod(len(owned), parts)
            start = part * size + min(part, larger)
            owned = owned[start : start + size + (part < larger)]
        else:
            owned = [x for i, x in enumerate(owned) if i // split.block % parts == part]
    return owned


@settings(max_examples=150, deadline=None)
@given(
    lengths,
    st.tuples(st.integers(1, 4), st.integers(1, 3)),
    st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=2, max_size=2),
    st.data(),
)
def test_splits_apply_one_after_the_other(
    n: int, grid: tuple[int, int], blocks: list[int | None], data: st.DataObject
) -> None:
    at = tuple(data.draw(st.integers(0, side - 1)) for side in grid)
    splits = [DimSplit(axis, block) for axis, block in enumerate(blocks)]
    ranges = owned_ranges(n, tuple(splits), grid, at)
    found = [index for r in ranges for index in range(r.start, r.stop)]
    assert found == owned_indices(n, splits, grid, at)
    assert all(r.size for r in ranges)


def test_splits_are_described() -> None:
    assert dim_split.describe(()) == "whole"
    assert dim_split.describe((DimSplit(1), DimSplit(0, 4))) == "axis1+axis0 in blocks of 4"


@settings(max_examples=100, deadline=None)
@given(lengths, lengths, cuts, cuts)
def test_segments_cover_a_block_once_in_order(
    rows: int, cols: int, row_cuts: tuple[int, ...], col_cuts: tuple[int, ...]
) -> None:
    covered = np.zeros((rows, cols), dtype=int)
    found = segments(rows, cols, row_cuts, col_cuts)
    for r, c in found:
        covered[r.slice, c.slice] += 1
    assert (covered == 1).all()
    assert len(found) == int(np.prod(row_cuts) * np.prod(col_cuts))
    filled = [(r, c) for r, c in found if r.size and c.size]
    assert filled == sorted(filled)


@settings(max_examples=100, deadline=None)
@given(lengths, lengths, cuts, cuts, st.integers(1, 7))
def test_shares_are_balanced_in_each_segment_and_in_all(
    rows: int, cols: int, row_cuts: tuple[int, ...], col_cuts: tuple[int, ...], owners: int
) -> None:
    found = shares(rows, cols, row_cuts, col_cuts, owners)
    for (r, c), counts in zip(segments(rows, cols, row_cuts, col_cuts), found, strict=True):
        assert sum(counts) == r.size * c.size
        assert max(counts) - min(counts) <= 1
    totals = [sum(counts[owner] for counts in found) for owner in range(owners)]
    assert max(totals) - min(totals) <= 1
    assert totals == [
        owned_words(rows, cols, row_cuts, col_cuts, owners, owner) for owner in range(owners)
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9), st.integers(0, 5))
def test_rectangles_are_the_flat_positions(first: int, last: int, width: int, stored: int) -> None:
    flat = Range(min(first, last), max(first, last))
    found = list(rectangles(flat, width, stored))
    positions = [
        (
            row * width + col,
            piece.offset + (row - piece.rows.start) * width + col - piece.cols.start,
        )
        for piece in found
        for row in range(piece.rows.start, piece.rows.stop)
        for col in range(piece.cols.start, piece.cols.stop)
    ]
    expected = [(at, stored + at - flat.start) for at in range(flat.start, flat.stop)]
    assert positions == expected
    assert len(found) <= 3


def test_a_product_of_ranges_is_stored_row_by_row() -> None:
    rows, cols = (Range(0, 2), Range(5, 6)), (Range(1, 2), Range(4, 7))
    storage = np.full(3 * 4, -1)
    for piece in product_pieces(rows, cols):
        for i in range(piece.rows.size):
            for j in range(piece.cols.size):
                at = piece.offset + i * piece.row_stride + j * piece.col_stride
                assert storage[at] == -1
                storage[at] = 10 * (piece.rows.start + i) + piece.cols.start + j
    assert storage.reshape(3, 4).tolist() == [[1, 4, 5, 6], [11, 14, 15, 16], [51, 54, 55, 56]]


def test_a_piece_moves_and_turns() -> None:
    piece = Piece(Range(0, 2), Range(3, 6), 7, 3, 1)
    assert piece.size == 6
    assert piece.moved(10, 20) == Piece(Range(10, 12), Range(23, 26), 7, 3, 1)
    assert piece.transposed == Piece(Range(3, 6), Range(0, 2), 7, 1, 3)
    assert piece.transposed.transposed == piece


def test_shares_start_where_the_last_one_ended() -> None:
    assert starts((3, 0, 4)) == [0, 3, 3]


@pytest.mark.parametrize("column_major", [False, True])
def test_segments_are_counted_in_storage_order(column_major: bool) -> None:
    """What `segment(row, col)` points at has the shape of that row's and column's cut."""
    layout = Layout(
        10, 12, (1, 2), (), (), flat_axis=1,
        row_segments=(2, 2), col_segments=(3,), column_major=column_major,
    )  # fmt: skip
    shapes, counts = layout.segment_shapes(0), layout.segment_counts(0)
    for row, height in enumerate([3, 2, 3, 2]):
        for col in range(3):
            at = layout.segment(row, col)
            assert shapes[at] == (height, 4)
            assert sum(counts[at]) == height * 4
    assert sum(sum(shares) for shares in counts) == 120


@pytest.mark.parametrize(
    "options", [{"row_splits": (DimSplit(0),), "flat_axis": 0}, {"col_splits": (DimSplit(2),)}]
)
def test_axes_are_used_once_and_must_be_there(options: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        Layout(4, 4, (2, 2), **options)  # type: ignore[arg-type]
