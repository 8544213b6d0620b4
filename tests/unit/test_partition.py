"""The balanced block split against what it must be: in order, whole, even."""

from hypothesis import given
from hypothesis import strategies as st

from dist_ml.partition import (
    Range,
    block,
    blocks,
    counts,
    growing_pieces,
    nested_blocks,
    owner_of,
    pieces,
)

SIZES = st.integers(0, 10_000)
OWNERS = st.integers(1, 70)


@given(SIZES, OWNERS)
def test_blocks_put_together_are_the_whole_in_order(n: int, p: int) -> None:
    ranges = blocks(n, p)
    assert len(ranges) == p
    assert [index for each in ranges for index in range(each.start, each.stop)] == list(range(n))


@given(SIZES, OWNERS)
def test_blocks_are_even_with_the_larger_first(n: int, p: int) -> None:
    sizes = counts(n, p)
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 2**62), st.integers(1, 10**6), st.data())
def test_owner_of_agrees_with_block_at_any_size(n: int, p: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, n - 1))
    owner = owner_of(index, n, p)
    mine = block(n, p, owner)
    assert mine.start <= index < mine.stop


@given(SIZES, st.integers(1, 300))
def test_pieces_cover_everything_once(n: int, piece: int) -> None:
    ranges = list(pieces(n, piece))
    assert [index for each in ranges for index in range(each.start, each.stop)] == list(range(n))
    assert all(1 <= each.size <= piece for each in ranges)


@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_intersect_is_the_common_part(edges: tuple[int, int, int, int]) -> None:
    one, other = Range(*sorted(edges[:2])), Range(*sorted(edges[2:]))
    common = one.intersect(other)
    assert set(range(common.start, common.stop)) == set(range(*one)) & set(range(*other))
    assert common.size >= 0


def test_a_range_cuts_a_sequence() -> None:
    assert list("abcdef"[Range(2, 4).slice]) == ["c", "d"]
    assert Range(3, 3).size == 0


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 40))
def test_growing_pieces_cover_all_and_double(n: int, first: int, more: int) -> None:
    found = list(growing_pieces(n, first, first + more))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(n))
    full = [min(first + more, first * 2**turn) for turn in range(len(found))]
    assert [part.size for part in found][:-1] == full[:-1]
    assert not found or found[-1].size <= full[-1]


@given(st.integers(0, 200), st.lists(st.integers(1, 5), max_size=3))
def test_nested_blocks_are_blocks_of_blocks_in_order(n: int, cuts: list[int]) -> None:
    found = nested_blocks(n, cuts)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(n))
    if not cuts:
        assert found == [Range(0, n)]
        return
    for number, outer in enumerate(blocks(n, cuts[0])):
        inner = nested_blocks(outer.size, cuts[1:])
        own = found[number * len(inner) : (number + 1) * len(inner)]
        assert [(part.start - outer.start, part.stop - outer.start) for part in own] == inner
