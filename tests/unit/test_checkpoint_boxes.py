"""Boxes of tensors: ranges as boxes, what fills a region."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.checkpoint.boxes import (
    boxes_of_range,
    fill,
    intersection,
    num_elements,
    size_of,
    slices_within,
)
from dist_ml.partition import Range
from dist_ml.placement import Region, flat_positions, whole


@given(st.lists(st.integers(0, 4), max_size=4), st.data())
def test_boxes_of_a_range_are_its_positions_in_order(shape: list[int], data: st.DataObject) -> None:
    n = math.prod(shape)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    boxes = boxes_of_range(shape, start, stop)
    positions = [flat_positions(box, shape).reshape(-1) for box in boxes]
    assert np.array_equal(np.concatenate([[], *positions]), np.arange(start, stop))
    assert len(boxes) <= max(2 * len(shape) - 1, 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_ranges_put_together_fill_the_whole(shape: list[int], data: st.DataObject) -> None:
    n = math.prod(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    bounds = [0, *cuts, n]
    boxes = [
        box
        for start, stop in itertools.pairwise(bounds)
        for box in boxes_of_range(shape, start, stop)
    ]
    assert fill(frozenset(boxes), whole(shape))
    assert not fill(frozenset(boxes[1:]), whole(shape))


@pytest.mark.parametrize(
    ("boxes", "filled"),
    [
        ([((0, 2), (0, 2))], True),
        ([((0, 1), (0, 2)), ((1, 2), (0, 2)), ((0, 0), (0, 2))], True),
        ([((0, 1), (0, 2)), ((1, 2), (0, 1))], False),  # a hole
        ([((0, 2), (0, 1)), ((0, 1), (0, 2))], False),  # as many elements, but one of them twice
        ([], False),
    ],
)
def test_what_fills_a_square(boxes: list[list[tuple[int, int]]], filled: bool) -> None:
    regions = frozenset(tuple(Range(*side) for side in box) for box in boxes)
    assert fill(regions, whole((2, 2))) == filled


def test_parts_of_regions() -> None:
    a: Region = (Range(2, 6), Range(0, 3))
    b: Region = (Range(4, 9), Range(1, 2))
    part = intersection(a, b)
    assert (part, size_of(part), num_elements(part)) == ((Range(4, 6), Range(1, 2)), (2, 1), 2)
    assert slices_within(part, a) == (slice(2, 4), slice(1, 2))
    assert num_elements(intersection(a, (Range(6, 7), Range(0, 3)))) == 0
    assert (num_elements(()), fill(frozenset([()]), ())) == (1, True)
