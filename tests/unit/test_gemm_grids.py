"""Grids of ranks: those of the algorithms, and the steps and memory that follow from one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ml.errors import ConfigError
from dist_ml.gemm import steps
from dist_ml.gemm.algorithms.carma import recursive_grid
from dist_ml.gemm.algorithms.flat_grid import divisors, flat_grid
from dist_ml.gemm.algorithms.summa_25d import best_layers
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.grid import (
    Grid,
    Tiles,
    least_bytes,
    mean_words,
    panel_bytes,
    partial_bytes,
    reduce_bytes,
    tile_sizes,
)
from dist_ml.gemm.grids import at_work, end_grids, grids_between
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.steps import check_grid, reduce_parts, steps_and_buffers

sides = st.integers(1, 40)
shapes = st.builds(ProductShape, sides, sides, sides, st.integers(1, 60))


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_the_search_sees_every_grid_that_keeps_enough_ranks_at_work(shape: ProductShape) -> None:
    ends = end_grids(shape, 0.03)
    between = grids_between(shape, ends, 0.03)
    found = set(zip(*(side.tolist() for side in between), strict=True))
    m, n, k = shape.sides
    usable = [
        (pm, pn, pk)
        for pm in range(1, min(m, shape.ranks) + 1)
        for pn in range(1, min(n, shape.ranks // pm) + 1)
        for pk in range(1, min(k, shape.ranks // (pm * pn)) + 1)
    ]
    least = min(at_work(shape), max(math.prod(grid) for grid in usable))
    assert {grid for grid in usable if math.prod(grid) >= least} <= found
    assert set(zip(*(side.tolist() for side in ends), strict=True)) <= found
    assert found <= set(usable)


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_the_flat_grid_has_the_fewest_words_of_its_size(shape: ProductShape) -> None:
    grid = flat_grid(shape, shape.ranks, 1)
    m, n, _ = shape.sides
    fitting = [
        Grid(pm, pn, 1)
        for pm in range(1, m + 1)
        for pn in range(1, n + 1)
        if pm * pn <= shape.ranks
    ]
    assert grid.size == max(other.size for other in fitting)
    same = [mean_words(shape, *other) for other in fitting if other.size == grid.size]
    assert mean_words(shape, *grid) == min(same)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_layers_divide_the_ranks(shape: ProductShape) -> None:
    layers = best_layers(shape)
    assert shape.ranks % layers == 0
    assert layers <= shape.sides[2]


@pytest.mark.parametrize(
    ("sizes", "ranks", "grid"),
    [
        ((64, 64, 64), 8, (2, 2, 2)),
        ((1000, 10, 10), 6, (6, 1, 1)),
        ((100, 100, 10), 12, (4, 3, 1)),
        ((2, 2, 2), 7, (1, 1, 1)),
        ((7, 1, 1), 14, (7, 1, 1)),
    ],
    ids=str,
)
def test_carma_splits_the_longest_dimension(
    sizes: tuple[int, int, int], ranks: int, grid: tuple[int, int, int]
) -> None:
    found = recursive_grid(ProductShape(*sizes, ranks))
    assert sorted(found) == sorted(grid)
    assert all(side <= size for side, size in zip(found, sizes, strict=True))


def test_divisors() -> None:
    for n in range(1, 200):
        assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_panels_are_wide_enough_and_enough_to_overlap() -> None:
    grid = Grid(2, 2, 1)
    assert steps_and_buffers(ProductShape(64, 64, 511, 4), grid, Choice()) == (1, 1)
    assert steps_and_buffers(ProductShape(64, 64, 4 * steps.PANEL, 4), grid, Choice()) == (4, 2)
    assert steps_and_buffers(ProductShape(64, 64, 10**6, 4), grid, Choice())[0] == steps.MOST_PANELS
    assert steps_and_buffers(ProductShape(64, 64, 100, 4), grid, Choice(panel=30)) == (4, 2)
    alone = ProductShape(64, 64, 10**6, 1)
    assert steps_and_buffers(alone, Grid(1, 1, 1), Choice()) == (1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 500),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([2, 4, 8]),
    st.floats(1.0, 50.0),
)
def test_what_the_limit_gives_fits_it(
    k: int, sides: tuple[int, int, int], word_bytes: int, factor: float
) -> None:
    """The panels, the partial C and its reduction stay within the limit, from the least on."""
    grid = Grid(*sides)
    plain = ProductShape(24, 36, max(k, grid.pk), grid.size, word_bytes, max(4, word_bytes))
    least = int(least_bytes(plain, *grid))
    shape = ProductShape(
        *plain.sides, grid.size, word_bytes, max(4, word_bytes), int(factor * least)
    )
    panels, buffers = steps_and_buffers(shape, grid, Choice())
    width = math.ceil(math.ceil(shape.k / grid.pk) / panels)
    used = panel_bytes(shape, grid.pm, grid.pn, width, buffers) + partial_bytes(shape, *grid)
    assert used + reduce_bytes(shape, *grid) <= shape.memory
    tight = ProductShape(*plain.sides, grid.size, word_bytes, max(4, word_bytes), max(0, least - 1))
    if least:
        with pytest.raises(ConfigError, match=f"the least is {least} bytes"):
            steps_and_buffers(tight, grid, Choice())


def test_c_is_reduced_in_parts_only_where_layers_share_it() -> None:
    large = ProductShape(4096, 4096, 64, 8)
    assert reduce_parts(large, Grid(2, 4, 1)) == 1
    assert reduce_parts(large, Grid(2, 2, 2)) == 32
    assert reduce_parts(ProductShape(64, 64, 64, 8), Grid(2, 2, 2)) == 1
    assert reduce_parts(ProductShape(3, 64, 64, 2, memory=10**9), Grid(1, 1, 2)) == 3


def test_memory_formulas_take_arrays() -> None:
    shape = ProductShape(30, 40, 50, 24, 2, 4)
    grids = [(1, 2, 12), (2, 3, 4), (24, 1, 1), (3, 8, 1)]
    arrays = [np.array(side) for side in zip(*grids, strict=True)]
    for function in (mean_words, least_bytes, partial_bytes, reduce_bytes):
        assert function(shape, *arrays).tolist() == pytest.approx(
            [float(function(shape, *grid)) for grid in grids]
        )


def test_tiles_make_blocks_smaller() -> None:
    shape = ProductShape(100, 60, 10, 4)
    assert tile_sizes(shape, 2, 2) == (50, 30)
    assert tile_sizes(shape, 2, 2, *Tiles(3, 4)) == (17, 8)
    assert partial_bytes(shape, 2, 1, 2, 2, 1) == 25 * 60 * 4


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(2, 2, 2), "8 ranks, but there are 4"),
        (Grid(0, 1, 1), "sides of at least 1"),
        (Grid(1, 4, 1), "splits n=3 over 4 ranks"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grid: Grid, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_grid(ProductShape(8, 3, 8, 4), grid)
