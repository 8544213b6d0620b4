"""Regions: every element has as many owners as the placement says, on any mesh and any shape."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.counter_random import uniform
from dist_ml.errors import MeshError
from dist_ml.models.initialise import fill_uniform
from dist_ml.partition import Range
from dist_ml.placement import Placement, Replicate, Shard, flat_positions

AXES = ("data", "pipeline", "operator")


def everybody(sizes: dict[str, int]) -> list[dict[str, int]]:
    ranges = [range(size) for size in sizes.values()]
    return [dict(zip(sizes, place, strict=True)) for place in itertools.product(*ranges)]


@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    dims=st.lists(st.none() | st.integers(0, 2), min_size=3, max_size=3),
)
def test_each_element_has_the_stated_number_of_owners(
    shape: list[int], counts: tuple[int, int, int], dims: list[int | None]
) -> None:
    sizes = dict(zip(AXES, counts, strict=True))
    parts = {
        axis: Replicate() if dim is None else Shard(dim % len(shape))
        for axis, dim in zip(AXES, dims, strict=True)
    }
    placement = Placement(parts)
    owners = np.zeros(math.prod(shape), int)
    for coordinates in everybody(sizes):
        region = placement.region(shape, sizes, coordinates)
        owners[flat_positions(region, shape).reshape(-1)] += 1
    assert (owners == placement.num_copies(sizes)).all()
    assert math.prod(sizes.values()) % placement.num_copies(sizes) == 0
    copies = math.prod(sizes[axis] for axis in placement.gradient_axes(sizes))
    assert copies == placement.num_copies(sizes)


def test_blocks_are_in_order_and_more_ranks_than_rows_leave_some_empty() -> None:
    rows = Placement({"operator": Shard(0)})
    sizes = {"data": 2, "pipeline": 1, "operator": 4}
    regions = [
        rows.region((3, 5), sizes, {"data": 0, "pipeline": 0, "operator": o}) for o in range(4)
    ]
    assert [region[0] for region in regions] == [
        Range(0, 1),
        Range(1, 2),
        Range(2, 3),
        Range(3, 3),
    ]
    assert all(region[1] == Range(0, 5) for region in regions)
    assert flat_positions(regions[1], (3, 5)).tolist() == [[5, 6, 7, 8, 9]]
    assert flat_positions(regions[3], (3, 5)).shape == (0, 5)


def test_axes_split_a_dimension_one_after_the_other() -> None:
    both = Placement({"data": Shard(1), "operator": Shard(1)})
    sizes = {"data": 2, "pipeline": 1, "operator": 2}
    columns = [both.region((1, 7), sizes, place)[1] for place in everybody(sizes)]
    assert columns == [Range(0, 2), Range(2, 4), Range(4, 6), Range(6, 7)]


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(MeshError, match=r"axis data can't split dimension 2 .* from 0 to 1"):
        Placement({"data": Shard(2)}).region((4, 4), {"data": 2}, {"data": 0})


def weights(shape: tuple[int, int], region: tuple[Range, Range] | None = None) -> np.ndarray:
    rows, columns = region or (Range(0, shape[0]), Range(0, shape[1]))
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
    """Put together along the split dimension, also where some ranks hold nothing."""
    placement, sizes = Placement({"operator": Shard(dim)}), {"operator": ranks}
    regions = [placement.region(shape, sizes, {"operator": rank}) for rank in range(ranks)]
    parts = [weights(shape, region) for region in regions]  # type: ignore[arg-type]
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
