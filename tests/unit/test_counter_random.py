"""Random bits by position: against the sequential generator, independent of grouping, and evenly
spread.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.counter_random import bits, lanes, rows, stream, uniform

MASK = 2**64 - 1


def splitmix64(state: int, num: int) -> list[int]:
    """The naive reference: the published generator, one number after the other."""
    numbers = []
    for _ in range(num):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def test_first_numbers_are_the_published_ones_for_state_zero() -> None:
    assert bits(0, np.arange(3)).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@given(st.integers(0, MASK))
def test_bits_are_the_sequence_read_by_position(key: int) -> None:
    assert bits(key, np.arange(7)[::-1]).tolist() == splitmix64(key, 7)[::-1]


@given(st.lists(st.integers(0, MASK), max_size=5), st.integers(0, 9))
def test_rows_are_one_sequence_a_key(keys: list[int], width: int) -> None:
    expected = [splitmix64(key, width) for key in keys]
    assert rows(np.array(keys, np.uint64), width).tolist() == expected


def test_rows_do_not_depend_on_how_many_are_asked_for_together() -> None:
    keys = bits(1, np.arange(40))
    together = rows(keys, 1500)
    assert all(
        np.array_equal(rows(keys[i : i + 1], 1500)[0], together[i]) for i in (0, 9, 10, 11, 39)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_lanes_cut_words_from_their_lowest_bits(dtype: type) -> None:
    keys = bits(3, np.arange(4))
    size = np.dtype(dtype).itemsize * 8
    numbers = lanes(keys, 11, dtype)
    words = rows(keys, 11)
    per_word = 64 // size
    expected = [
        [(int(words[i, j // per_word]) >> (size * (j % per_word))) % 2**size for j in range(11)]
        for i in range(4)
    ]
    assert numbers.tolist() == expected


def test_uniform_is_evenly_spread() -> None:
    numbers = uniform(stream("test"), np.arange(100_000))
    assert ((numbers >= 0) & (numbers < 1)).all()
    observed = np.histogram(numbers, 50, (0, 1))[0]
    assert (
        (observed - 2000) ** 2 / 2000
    ).sum() < 95  # 49 degrees of freedom: exceeded once in 10 000 keys


def test_streams_differ_by_purpose_and_every_number() -> None:
    keys = {
        stream("a"),
        stream("b"),
        stream("a", 1),
        stream("a", 1, 1),
        stream("a", 11),
        stream("a", -1),
        stream("a", 1, 0),
    }
    assert len(keys) == 7
    assert stream("a", np.int64(11)) == stream("a", 11)  # type: ignore[arg-type]


def test_related_streams_are_uncorrelated() -> None:
    numbers = np.array([uniform(stream("test", seed), np.arange(20_000)) for seed in range(8)])
    correlations = np.corrcoef(np.concatenate([numbers, numbers[:, ::-1]]))
    assert np.abs(correlations - np.eye(16)).max() < 5 / np.sqrt(20_000)
