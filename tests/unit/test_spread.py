"""What ranks hold of an activation, and of weights: every element has as many owners as it should,
on any grid and for any sizes.
"""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.counter_random import uniform
from dist_ml.models.initialise import fill_uniform
from dist_ml.models.spread import WHOLE, Spread, own_range
from dist_ml.operator_parallel.grid import Place, Sides
from dist_ml.partition import Range
from dist_ml.placement import flat_positions, whole

SIDES = Sides._fields


@given(
    sides=st.tuples(*[st.integers(1, 3)] * 4),
    rows=st.sets(st.sampled_from(SIDES)),
    shape=st.tuples(st.integers(0, 7), st.integers(0, 4)),
    unit=st.integers(1, 3),
)
def test_each_element_has_the_stated_number_of_owners(
    sides: tuple[int, int, int, int], rows: set[str], shape: tuple[int, int], unit: int
) -> None:
    """Rows are cut by some sides, features by another one; all other sides hold copies."""
    by_rows = [side for side in SIDES if side in rows]
    by_features = [side for side in SIDES if side not in rows][:1]
    num_rows, num_features = shape[0], shape[1] * unit
    owners = np.zeros(num_rows * num_features, int)
    for rank in range(math.prod(sides)):
        place = Place(Sides(*sides), rank)
        spread = Spread(place.cuts(*by_rows), place.cuts(*by_features))
        columns = spread.feature_range(num_features, unit)
        assert columns.start % unit == columns.stop % unit == 0
        region = spread.row_range(num_rows), columns
        owners[flat_positions(region, (num_rows, num_features)).reshape(-1)] += 1
    cut = Place(Sides(*sides), 0).size(*by_rows, *by_features)
    assert (owners == math.prod(sides) // cut).all()


def test_sides_that_cut_nothing_leave_it_whole() -> None:
    place = Place(Sides(first=4), 2)
    assert Spread(place.cuts("copies", "rows"), place.cuts("second")) == WHOLE
    assert Spread(features=place.cuts("first")).feature_range(10) == Range(6, 8)
    assert own_range(3, place.cuts("first")) == Range(2, 3)


def weights(shape: tuple[int, int], region: tuple[Range, ...] | None = None) -> np.ndarray:
    rows, columns = region or whole(shape)
    weight = np.full((rows.size, columns.size), np.nan, np.float32)
    fill_uniform(weight, 5, shape, 0.5, region)
    return weight


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ranks=st.integers(1, 5),
    dim=st.integers(0, 1),
)
def test_the_weights_of_all_regions_are_the_whole(
    shape: tuple[int, int], ranks: int, dim: int
) -> None:
    """Put together along the dimension that is cut, also where some ranks hold nothing."""
    parts = []
    for rank in range(ranks):
        region = list(whole(shape))
        region[dim] = own_range(shape[dim], Place(Sides(first=ranks), rank).cuts("first"))
        parts.append(weights(shape, tuple(region)))
    assert np.array_equal(np.concatenate(parts, axis=dim), weights(shape))


def test_weights_are_the_stream_read_by_position() -> None:
    """More than are drawn at once, in both dimensions; the reference draws all in one call."""
    shape = (3, 70_000)
    expected = (uniform(5, np.arange(3 * 70_000)) - 0.5).astype(np.float32).reshape(shape)
    assert np.array_equal(weights(shape), expected)
    assert np.array_equal(weights((70_000, 3)), expected.reshape(70_000, 3))
    region = (Range(1, 3), Range(100, 69_999))
    assert np.array_equal(weights(shape, region), expected[1:3, 100:69_999])
    assert weights(shape, (Range(3, 3), Range(0, 70_000))).shape == (0, 70_000)
