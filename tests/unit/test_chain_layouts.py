"""Distributions of a chain's layers: words told by hand, and the programme against all choices."""

from itertools import product

import pytest

from dist_ml.bench import layouts
from dist_ml.bench.layouts import LayoutsBench, starts
from dist_ml.plan.chain_layouts import Chain, ChainCosts, descend, exact, grids, uniform


def test_words_of_what_experts_take() -> None:
    b, m, h, p = 32, 10, 40, 4
    chain = Chain((m, h, m, h, m), b, (p,))
    costs = ChainCosts(chain)
    weights = 4 * m * h
    assert costs.total(uniform(chain, "rows")) == pytest.approx(2 * (p - 1) / p * weights)
    # two pairs: the sum after the first there, before the second back, and the last to rows
    pairs = costs.total(uniform(chain, "columns", "inner"))
    assert pairs == pytest.approx((2 + 2 + 2) * (p - 1) / p * b * m)
    # (p-1)/p^2 of an activation from rows to columns, there and back, and one layer's weights
    mixed = costs.total((("rows",), ("inner",), ("columns",), ("inner",)))
    share = (p - 1) / p
    turned = 2 * share / p * b * h  # the first layer's outputs
    between = share * b * m * (2 + 2)  # partial to whole, and back
    assert mixed == pytest.approx(2 * share * m * h + turned + between + 2 * share * b * m)


def test_axes_that_split_make_the_others_tensors_smaller() -> None:
    chain = Chain((8, 8, 8), 16, (2, 4))
    costs = ChainCosts(chain)
    both = ("rows", "columns"), ("rows", "inner")
    # weights over 4, summed over 2; rows of 16 over 2 in the last sum over 4, there and back
    assert costs.total(both) == pytest.approx(2 * (1 / 2) * 2 * 64 / 4 + 2 * (3 / 4) * 16 / 2 * 8)


@pytest.mark.parametrize("widths", [(6, 50, 4), (64, 8, 8, 64), (3, 40, 2, 9, 5)])
@pytest.mark.parametrize("grid", [(4,), (2, 2)])
@pytest.mark.parametrize("rows", [4, 300])
def test_the_programme_is_exact(widths: tuple[int, ...], grid: tuple[int, ...], rows: int) -> None:
    chain = Chain(widths, rows, grid)
    if len(chain.choices) ** chain.num_layers > 1000:
        chain = Chain(widths[:4], rows, grid)
    costs = ChainCosts(chain)
    least = min(map(costs.total, product(chain.choices, repeat=chain.num_layers)))
    best = exact(chain)
    assert best.words == pytest.approx(least)
    assert costs.total(best.rules) == pytest.approx(least)
    found = descend(chain, starts(chain))
    assert least <= found.words + 1e-9
    for start in starts(chain):
        assert found.words <= costs.total(start) + 1e-9


def test_grids_have_every_factorisation_once() -> None:
    assert list(grids(8, 2)) == [(4, 2), (8,)]
    assert set(grids(64, 3)) == {
        (64,), (32, 2), (16, 4), (8, 8), (16, 2, 2), (8, 4, 2), (4, 4, 4)
    }  # fmt: skip


def test_the_benchmark_compares_them() -> None:
    config = LayoutsBench(((64, 256, 64), (32, 32, 32, 8)), (16, 512), (2, 8), 2)
    result = layouts.run(config, None)  # type: ignore[arg-type]
    assert len(result.records) == 4
    for record in result.records:
        assert record["descent over exact"] >= 1 - 1e-12
        assert record["data parallel over exact"] >= 1 - 1e-12
