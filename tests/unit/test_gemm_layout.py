"""Layouts and redistribution plans, against a matrix of owners."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ml.errors import ConfigError
from dist_ml.gemm import redistribution
from dist_ml.gemm.dim_split import DimSplit
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.layouts import (
    block_2d,
    block_3d,
    block_25d,
    block_cols,
    block_cyclic,
    block_rows,
    on_one_rank,
)

RANKS = 13


def layouts(rows: int, cols: int) -> list[Layout]:
    """Every kind of layout of a rows x cols matrix, and the transposes of the same kinds."""
    kinds = [
        lambda m, n: block_rows(m, n, 6),
        lambda m, n: block_cols(m, n, 5),
        lambda m, n: block_2d(m, n, (2, 3)),
        lambda m, n: block_cyclic(m, n, (3, 2), (2, 3)),
        lambda m, n: block_25d(m, n, (2, 1, 3)),
        lambda m, n: block_25d(m, n, (2, 2, 2), replicated=True),
        lambda m, n: block_3d(m, n, (2, 2, 2), (0, 2, 1)),
        lambda m, n: on_one_rank(m, n),
        lambda m, n: Layout(
            m, n, (2, 3, 2), (DimSplit(0),), (DimSplit(2),), flat_axis=1, col_segments=(3,)
        ),
        lambda m, n: Layout(m, n, (2, 3), (DimSplit(0),), (), flat_axis=1, row_segments=(2,)),
    ]
    return [kind(rows, cols) for kind in kinds] + [kind(cols, rows).transposed for kind in kinds]


def owners(layout: Layout) -> np.ndarray:
    """owners[rank, i, j]: does the rank hold element (i, j)?"""
    held = np.zeros((RANKS, *layout.shape), dtype=int)
    for rank in range(RANKS):
        for piece in layout.pieces(rank):
            held[rank, piece.rows.slice, piece.cols.slice] += 1
    return held


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (13, 3), (0, 4), (4, 0), (17, 17)])
def test_every_element_has_its_owners_and_its_own_place(shape: tuple[int, int]) -> None:
    for layout in layouts(*shape):
        held = owners(layout)
        assert (held.sum(axis=0) == layout.replicas).all(), layout
        assert held.max(initial=0) <= 1
        for rank in range(RANKS):
            used = np.zeros(layout.num_words(rank), dtype=int)
            for piece in layout.pieces(rank):
                i, j = np.meshgrid(
                    np.arange(piece.rows.size), np.arange(piece.cols.size), indexing="ij"
                )
                np.add.at(used, piece.offset + i * piece.row_stride + j * piece.col_stride, 1)
            assert (used == 1).all(), (layout, rank)


@pytest.mark.parametrize("shape", [(5, 7), (9, 4)])
def test_redistribution_moves_what_changes_owner_and_nothing_else(shape: tuple[int, int]) -> None:
    for source, target in itertools.product(layouts(*shape), repeat=2):
        changes = int((owners(target) & ~owners(source) & 1).sum())
        assert redistribution.moved_words(source, target) == changes, (source, target)


def test_both_sides_of_a_redistribution_count_the_same() -> None:
    for source, target in itertools.combinations(layouts(6, 8)[::2], 2):
        for sender, receiver in itertools.product(range(12), repeat=2):
            sent = redistribution.send_words(source, target, sender, 12)[receiver]
            assert sent == redistribution.receive_words(source, target, receiver, 12)[sender]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_dealt_blocks_are_balanced_to_the_element(
    m: int, n: int, pm: int, pn: int, pk: int, segments: int
) -> None:
    layout = Layout(
        m, n, (pm, pn, pk), (DimSplit(0),), (DimSplit(1),), flat_axis=2, row_segments=(segments,)
    )
    for corner in range(pm * pn):
        words = [layout.num_words(corner * pk + depth) for depth in range(pk)]
        rows, cols = layout.block_shape(corner * pk)
        assert sum(words) == rows * cols
        assert max(words) - min(words) <= 1


def test_a_transpose_moves_nothing() -> None:
    layout = block_cyclic(7, 9, (2, 2), (2, 3))
    assert layout.transposed.transposed == layout
    assert [piece.transposed for piece in layout.pieces(3)] == list(layout.transposed.pieces(3))


def test_a_description_names_what_counts() -> None:
    assert (
        block_cyclic(8, 4, (2, 1), (2, 3)).describe()
        == "8 x 4 over 2 x 1: rows axis0 in blocks of 2, cols axis1 in blocks of 3"
    )
    assert (
        block_25d(8, 4, (2, 1, 2)).describe()
        == "8 x 4 over 2 x 1 x 2: rows axis0, cols axis1, dealt over axis2"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: block_2d(-1, 2, (1, 1)), "negative size"),
        (lambda: block_2d(4, 4, (0, 2)), "below 1"),
        (lambda: block_cyclic(4, 4, (2, 2), (0, 1)), "at least 1 x 1"),
    ],
)
def test_impossible_layouts_are_refused(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
