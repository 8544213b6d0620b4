"""The family of products: what each algorithm takes, what `auto` chooses, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_ml.errors import ConfigError
from dist_ml.gemm import family, prediction
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.family import GEMMS
from dist_ml.gemm.grid import Grid, Tiles
from dist_ml.gemm.grids import at_work
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import MAX_RANKS, ProductShape
from dist_ml.measure.cost_model import CostModel, Link

SLOW_LINK = CostModel.one_link(Link(1e-6, 1e8), 1e12)
SLOW_MESSAGES = CostModel.one_link(Link(1e-2, 1e11), 1e12)
SLOW_RANKS = CostModel.one_link(Link(1e-6, 1e10), 1e9)

sides = st.integers(1, 300)
shapes = st.builds(ProductShape, sides, sides, sides, st.integers(1, 40))
models = st.builds(
    lambda latency, rate, flops: CostModel.one_link(Link(latency, rate), flops),
    st.floats(1e-7, 1e-2),
    st.floats(1e7, 1e11),
    st.floats(1e9, 1e13),
)


def possible(shape: ProductShape) -> list[Plan]:
    """The plans of all algorithms that can plan `shape`."""
    plans = []
    for entry in GEMMS.values():
        try:
            plans.append(entry.plan(shape, Choice(), Orders()))
        except ConfigError:
            continue
    return plans


@settings(max_examples=40, deadline=None)
@given(shapes, models)
def test_auto_is_never_predicted_slower_than_the_best(
    shape: ProductShape, model: CostModel
) -> None:
    seconds = prediction.seconds(family.plan("auto", shape, model=model), model)
    assert seconds == min(prediction.seconds(plan, model) for plan in possible(shape))


@settings(max_examples=40, deadline=None)
@given(shapes, st.one_of(st.none(), st.floats(0.2, 1.0)))
def test_without_a_machine_auto_moves_the_fewest_words(
    shape: ProductShape, share: float | None
) -> None:
    """Of the plans that give work to as many ranks as a search must."""
    if share is not None:
        shape = replace(shape, memory=int(family.plan("cosma", shape).working_bytes * share))
    plans = possible(shape)
    assume(plans)
    busy = min(at_work(shape), max(plan.grid.size for plan in plans))
    found = family.plan("auto", shape)
    assert found.grid.size >= busy
    assert found.words == min(plan.words for plan in plans if plan.grid.size >= busy)


def test_auto_takes_what_suits_the_machine() -> None:
    """A slow link asks for few words, slow messages for few of them."""
    shape = ProductShape(4096, 4096, 4096, 64)
    by_words, by_messages = (
        family.plan("auto", shape, model=model) for model in (SLOW_LINK, SLOW_MESSAGES)
    )
    assert by_words.words < by_messages.words
    assert by_messages.messages < by_words.messages


def test_the_prediction_is_the_sum_of_its_parts() -> None:
    """One panel, so that nothing hides: computing, then gathering."""
    plan = family.plan("gather", ProductShape(64, 64, 64, 4))
    model = CostModel.one_link(Link(1e-3, 1e6), 1e9)
    computing = 2 * 16 * 64 * 64 / 1e9
    gathering = 3 * 1e-3 + 4 * 64 * 64 * 3 / 4 / 1e6
    assert prediction.seconds(plan, model) == pytest.approx(computing + gathering)


def test_the_prediction_hides_all_but_the_first_panel() -> None:
    shape = ProductShape(256, 256, 4096, 4)
    plan = family.plan("summa", shape, Choice(panel=512))
    free = CostModel.one_link(Link(0.0, 1e30), 1e9)
    slow = CostModel.one_link(Link(0.0, 1e6), 1e9)
    computing, both = prediction.seconds(plan, free), prediction.seconds(plan, slow)
    gathering = max(plan.moved(rank).received for rank in range(4)) * 4 / 1e6
    assert max(computing, gathering) < both < computing + gathering


@pytest.mark.parametrize("model", [None, SLOW_LINK, SLOW_RANKS], ids=["words", "link", "ranks"])
def test_auto_keeps_what_the_user_fixed(model: CostModel | None) -> None:
    shape = ProductShape(64, 64, 64, 8)
    assert family.plan("auto", shape, Choice(Grid(2, 2, 2)), model=model).grid == (2, 2, 2)
    layered = family.plan("auto", shape, Choice(replication=2), model=model)
    assert (layered.algorithm, layered.grid.pk) == ("summa_25d", 2)
    tiled = family.plan("auto", shape, Choice(Grid(2, 2, 2), tiles=Tiles(2, 2)), model=model)
    assert tiled.tiles == (2, 2)


def test_auto_gives_the_error_of_the_first_where_nothing_fits() -> None:
    with pytest.raises(ConfigError, match="the least is"):
        family.plan("auto", ProductShape(512, 512, 512, 4, memory=10))
    with pytest.raises(ConfigError, match="no algorithm takes replication and tiles together"):
        family.plan("auto", ProductShape(8, 8, 8, 4), Choice(replication=2, tiles=Tiles(2, 2)))


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("summa", Choice(replication=2), r"replication=2 has no effect on summa.* use summa_25d"),
        ("cannon", Choice(panel=4), r"panel=4 has no effect on cannon.* use cosma or"),
        ("gather", Choice(panel=4), "panel=4 has no effect on gather"),
        ("summa_25d", Choice(Grid(2, 2, 2), replication=4), "has 2 layers; give one of them"),
        ("cosm", Choice(), "did you mean cosma"),
    ],
)
def test_choices_without_effect_are_refused(name: str, choice: Choice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        family.plan(name, ProductShape(8, 8, 8, 8), choice)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((10**23, 1, 1, 1), f"m={10**23} must be at most"),
        ((10**9, 10**9, 1, 1), "C of 1000000000 x 1000000000 would have more than"),
        ((1, 10**9, 10**9, 1), "B of 1000000000 x 1000000000"),
        ((8, 8, 8, MAX_RANKS + 1), "more than can be planned"),
        ((8, 8, 8, 2, 4, 4, 1 << 63), "more bytes than an address has"),
        ((8, 8, 8, 2, 4, 4, -1), "memory=-1 bytes must be 0 or more"),
    ],
)
def test_sizes_beyond_what_can_be_planned_are_refused(sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ProductShape(*sizes)


def test_the_largest_sizes_are_planned() -> None:
    shape = ProductShape(1 << 28, 1 << 28, 1 << 28, 512, 8, 8)
    for name, memory in (("auto", None), ("cosma", 1 << 43)):
        plan = family.plan(name, replace(shape, memory=memory))
        assert plan.words >= plan.bound_words * (1 - 1e-9) > 0


def test_a_plan_of_too_many_panels_is_refused() -> None:
    with pytest.raises(ConfigError, match="would be gathered in 10000000 panels"):
        family.plan("cosma", ProductShape(8, 8, 10**7, 1), Choice(panel=1))


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(list(GEMMS)),
    st.builds(
        ProductShape,
        st.integers(0, 60),
        st.integers(0, 60),
        st.integers(0, 60),
        st.integers(1, 30),
        st.sampled_from([2, 4, 8]),
    ),
    st.booleans(),
    st.booleans(),
)
def test_plans_conserve_words_and_share_the_matrices(
    name: str, shape: ProductShape, turn_a: bool, turn_b: bool
) -> None:
    """What is sent is received; A, B and C are owned once; every product is computed once."""
    plan = GEMMS[name].plan(shape, Choice(), Orders(turn_a, turn_b))
    ranks = range(shape.ranks)
    moved = [plan.moved(rank) for rank in ranks]
    assert sum(m.sent for m in moved) == sum(m.received for m in moved)
    assert plan.words == max(m.received for m in moved)
    for layout in (plan.layout_a, plan.layout_b, plan.layout_c):
        assert sum(layout.num_words(rank) for rank in ranks) == layout.rows * layout.cols
    assert sum(plan.flops(rank) for rank in ranks) == 2 * shape.m * shape.n * shape.k
    for rank in range(plan.grid.size):
        assert sum(panel.size for panel in plan.panels(rank)) == plan.block(rank)[2].size
