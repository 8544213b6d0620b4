"""Bounds, grids and plans: against brute force, the proven bounds, and the formulas of the
literature.
"""

import contextlib
import itertools
import math
import time

import numpy as np
import pytest

from dist_ml.errors import ConfigError
from dist_ml.gemm import bounds, family, search, tile_search
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.family import GEMMS
from dist_ml.gemm.grid import Grid, Tiles, least_bytes, mean_words, most_words
from dist_ml.gemm.product_shape import ProductShape

TABLE = [(4096, 4096, 4096), (65536, 256, 256), (256, 256, 65536), (8192, 8192, 64)]


def brute_force(product_shape: ProductShape) -> int:
    """The fewest words of any integer grid of at least 97 % of the ranks (or of all that can be
    used), one by one.
    """
    m, n, k = product_shape.sides
    grids = [
        Grid(pm, pn, pk)
        for pm in range(1, min(product_shape.ranks, m) + 1)
        for pn in range(1, min(product_shape.ranks // pm, n) + 1)
        for pk in range(1, min(product_shape.ranks // (pm * pn), k) + 1)
    ]
    least = min(math.ceil(0.97 * product_shape.ranks), max(grid.size for grid in grids))
    return min(int(most_words(product_shape, *grid)) for grid in grids if grid.size >= least)


@pytest.mark.parametrize("shape", [*TABLE, (257, 129, 31), (7, 5, 3), (1, 1, 50), (300, 2, 2)])
def test_auto_is_the_best_integer_grid(shape: tuple[int, int, int]) -> None:
    for ranks in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 27, 64, 100, 512):
        product_shape = ProductShape(*shape, ranks)
        grid = search.best_grid(product_shape)
        assert most_words(product_shape, *grid) == brute_force(product_shape), ranks
        plan = family.plan("auto", product_shape)
        assert plan.words <= most_words(product_shape, *grid), ranks
        if plan.grid.size == ranks:
            assert plan.words >= bounds.memory_independent(*shape, ranks) * (1 - 1e-9), ranks


@pytest.mark.parametrize(
    ("shape", "attained"),
    [
        (TABLE[0], [8, 64, 512, 4096]),
        (TABLE[1], [2, 4, 8, 16]),
        (TABLE[2], [2, 4, 8, 16, 64]),
        (TABLE[3], [4, 16, 64, 4096]),
    ],
)
def test_the_tight_bound_is_met_where_a_grid_attains_it(
    shape: tuple[int, int, int], attained: list[int]
) -> None:
    for ranks in attained:
        plan = family.plan("auto", ProductShape(*shape, ranks))
        assert plan.words == pytest.approx(plan.bound_words, rel=1e-4), (shape, ranks)


@pytest.mark.parametrize("shape", TABLE)
def test_a_hundred_thousand_ranks_are_planned_in_a_second_of_processor_time(
    shape: tuple[int, int, int],
) -> None:
    start = time.process_time()
    plan = family.plan("auto", ProductShape(*shape, 100_000))
    assert 1 <= plan.words / plan.bound_words < 1.29
    assert plan.messages > 0
    assert time.process_time() - start < 1


def test_the_bounds_at_known_points() -> None:
    assert bounds.memory_independent(4, 4, 4, 1) == 0
    assert bounds.memory_independent(1000, 10, 5, 2) == 25  # the smallest matrix, gathered
    n, ranks = 1024, 64
    assert bounds.memory_independent(n, n, n, ranks) == pytest.approx(
        3 * n * n * (ranks ** (-2 / 3) - 1 / ranks)
    )
    assert bounds.memory_independent(5, 0, 3, 4) == 0
    assert bounds.limited_memory(100, 100, 100, 10, 400) == pytest.approx(
        2 * 100**3 / (10 * 20) + 400
    )


@pytest.mark.parametrize(
    ("name", "ranks", "formula"),
    [
        ("cannon", 16, lambda n, p: 2 * n * n / math.sqrt(p)),
        ("summa", 16, lambda n, p: 2 * n * n / math.sqrt(p) * (1 - 1 / math.sqrt(p))),
        ("auto", 64, lambda n, p: 3 * n * n / p ** (2 / 3) * (1 - p ** (-1 / 3))),
        ("gather", 16, lambda n, p: n * n * (1 - 1 / p)),
    ],
)
def test_square_volumes_are_the_formulas(name: str, ranks: int, formula) -> None:
    n = 960
    assert family.plan(name, ProductShape(n, n, n, ranks)).words == pytest.approx(
        formula(n, ranks), rel=0.01
    )


def test_layers_lower_summa_to_the_25d_formula() -> None:
    n, ranks, layers = 960, 64, 4
    plan = family.plan("summa_25d", ProductShape(n, n, n, ranks), Choice(replication=layers))
    side = math.isqrt(ranks // layers)
    expected = 2 * n * n / math.sqrt(layers * ranks) * (1 - 1 / side) + n * n / side**2 * (
        1 - 1 / layers
    )
    assert plan.words == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", list(GEMMS))
def test_plans_are_whole(name: str) -> None:
    for (m, n, k), ranks in itertools.product(
        [(1, 1, 1), (5, 7, 3), (17, 4, 40), (0, 3, 2), (3, 2, 0)], [1, 2, 4, 6, 9]
    ):
        plan = family.plan(name, ProductShape(m, n, k, ranks))
        covered = np.zeros((m, n, k), dtype=int)
        for rank in range(ranks):
            rows, cols, _ = plan.block(rank)
            panels = plan.panels(rank) if rank < plan.grid.size else []
            for panel in panels:
                covered[rows.slice, cols.slice, panel.slice] += 1
        assert (covered == 1).all(), plan
        moved = [plan.moved(rank) for rank in range(ranks)]
        assert sum(m.sent for m in moved) == sum(m.received for m in moved)
        assert plan.words == max(m.received for m in moved)
        for layout in (plan.layout_a, plan.layout_b, plan.layout_c):
            assert sum(layout.num_words(rank) for rank in range(ranks)) == layout.rows * layout.cols


@pytest.mark.parametrize("name", ["auto", "summa", "summa_25d", "carma"])
@pytest.mark.parametrize("word_bytes", [2, 8])
def test_a_memory_limit_is_kept(name: str, word_bytes: int) -> None:
    for (m, n, k), ranks in itertools.product(
        [(257, 129, 300), (64, 64, 4096), (512, 512, 16)], [1, 6, 27]
    ):
        free = family.plan(name, ProductShape(m, n, k, ranks, word_bytes, max(4, word_bytes)))
        for part in (1.0, 0.5, 0.1):
            limit = int(free.working_bytes * part)
            product_shape = ProductShape(m, n, k, ranks, word_bytes, max(4, word_bytes), limit)
            with contextlib.suppress(ConfigError):  # below the least of this algorithm's grid
                assert family.plan(name, product_shape).working_bytes <= limit, product_shape


@pytest.mark.parametrize("shape", TABLE)
@pytest.mark.parametrize("factor", [1.1, 2, 4])
def test_limited_memory_stays_near_cosmas_bound(shape: tuple[int, int, int], factor: float) -> None:
    m, n, k = shape
    for ranks in (2, 4, 8, 16, 27, 64, 512, 4096):
        memory = int(factor * 4 * (m * k + k * n + m * n) / ranks)
        plan = family.plan("auto", ProductShape(m, n, k, ranks, memory=memory))
        assert plan.working_bytes <= memory
        assert plan.limited_bound_words is not None
        assert plan.words <= 1.15 * plan.limited_bound_words, (shape, factor, ranks)


def tiled_brute_force(product_shape: ProductShape) -> int:
    """The fewest words of any grid of 97 % of the ranks in any tiles that fit, one by one."""
    m, n, k = product_shape.sides
    found = [
        int(most_words(product_shape, pm, pn, pk, tm, tn))
        for pm in range(1, min(product_shape.ranks, m) + 1)
        for pn in range(1, min(product_shape.ranks // pm, n) + 1)
        for pk in range(1, min(product_shape.ranks // (pm * pn), k) + 1)
        if pm * pn * pk >= math.ceil(0.97 * product_shape.ranks)
        for tm in range(1, tile_search.MOST_TILES + 1)
        for tn in range(1, tile_search.MOST_TILES + 1)
        if least_bytes(product_shape, pm, pn, pk, 1, 1, tm, tn) <= product_shape.memory
    ]
    return min(found)


@pytest.mark.parametrize(
    ("shape", "ranks", "words"),
    [
        ((64, 64, 64), 512, 130),
        ((200, 20, 90), 300, 40),
        ((90, 20, 200), 300, 60),
        ((30, 30, 30), 27, 80),
    ],
)
def test_tiles_of_c_are_used_where_they_save_words(
    shape: tuple[int, int, int], ranks: int, words: int
) -> None:
    product_shape = ProductShape(*shape, ranks, memory=4 * words)
    grid = search.best_grid(product_shape)
    tiled, tiles = tile_search.best_tiles(product_shape, grid)
    best, found = tiled_brute_force(product_shape), int(most_words(product_shape, *tiled, *tiles))
    assert found == best or (tiles == (1, 1) and found * tile_search.WORDS_FOR_TILES <= best)
    plan = family.plan("auto", product_shape)
    assert plan.working_bytes <= product_shape.memory
    assert plan.words <= found
    assert sum(plan.moved(rank).sent for rank in range(ranks)) == sum(
        plan.moved(rank).received for rank in range(ranks)
    )


@pytest.mark.parametrize(
    ("shape", "factor"), [(TABLE[0], 1.1), (TABLE[1], 4), (TABLE[2], 2), (TABLE[3], 1.1)]
)
def test_a_hundred_thousand_ranks_of_little_memory_stay_near_cosmas_bound(
    shape: tuple[int, int, int], factor: float
) -> None:
    m, n, k = shape
    memory = int(factor * 4 * (m * k + k * n + m * n) / 100_000)
    start = time.process_time()
    plan = family.plan("auto", ProductShape(m, n, k, 100_000, memory=memory))
    assert time.process_time() - start < 2
    assert plan.working_bytes <= memory
    assert plan.limited_bound_words is not None
    assert plan.words <= 1.15 * plan.limited_bound_words


def test_tiles_multiply_what_passes_by() -> None:
    one, four = (
        family.plan(
            "auto", ProductShape(64, 64, 64, 8), Choice(grid=Grid(2, 2, 2), tiles=Tiles(*t))
        )
        for t in ((1, 1), (2, 2))
    )
    reduced = 512 * 1  # (pk - 1) shares of C of a rank
    assert four.words - reduced == 2 * (one.words - reduced)


def test_too_little_memory_names_the_least() -> None:
    product_shape = ProductShape(512, 512, 512, 4, memory=10)
    with pytest.raises(ConfigError, match=r"memory=10 bytes .* the least is (\d+) bytes") as caught:
        family.plan("auto", product_shape)
    least = int(str(caught.value).split("the least is ")[1].split()[0])
    plan = family.plan("auto", ProductShape(512, 512, 512, 4, memory=least))
    assert plan.working_bytes <= least
    assert least == min(
        least_bytes(product_shape, *grid) for grid in [(4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 1, 4)]
    )


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("auto", Choice(grid=Grid(2, 2, 2)), r"grid=\[2, 2, 2\] = 8 ranks, but there are 6"),
        ("auto", Choice(grid=Grid(0, 2, 2)), "at least 1"),
        ("cannon", Choice(grid=Grid(2, 3, 1)), "needs a square"),
        ("summa", Choice(grid=Grid(1, 2, 3)), "no layers"),
        ("gather", Choice(grid=Grid(1, 2, 1)), "splits rows only"),
        ("summa_25d", Choice(replication=4), "must divide the 6 ranks"),
        ("auto", Choice(panel=0), "panel=0 must be at least 1"),
        ("strassen", Choice(), "not one of auto, cosma"),
    ],
)
def test_impossible_choices_are_refused_in_words(name: str, choice: Choice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        family.plan(name, ProductShape(64, 64, 64, 6), choice)


def test_a_grid_side_beyond_its_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"splits m=2 over 4 ranks"):
        family.plan("auto", ProductShape(2, 64, 64, 4), Choice(grid=Grid(4, 1, 1)))


@pytest.mark.parametrize(
    ("product_shape", "words"), [((-1, 2, 3, 4), "m=-1"), ((1, 2, 3, 0), "ranks=0")]
)
def test_impossible_problems_are_refused(
    product_shape: tuple[int, int, int, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        ProductShape(*product_shape)


def test_transposed_operands_keep_the_words() -> None:
    product_shape = ProductShape(37, 41, 53, 6)
    plain, turned = (
        family.plan("auto", product_shape),
        family.plan("auto", product_shape, orders=Orders(True, True)),
    )
    assert [plain.moved(rank) for rank in range(6)] == [turned.moved(rank) for rank in range(6)]
    assert turned.layout_a.column_major
    assert not plain.layout_a.column_major


def test_the_mean_is_never_above_the_most() -> None:
    product_shape = ProductShape(37, 41, 53, 24)
    for grid in [(1, 1, 24), (2, 3, 4), (24, 1, 1), (3, 8, 1)]:
        assert mean_words(product_shape, *grid) <= most_words(product_shape, *grid)
