"""Who owns which range: the only place that splits n things over p owners.

The rule is the balanced block split: the first `n mod p` owners get one element more. It holds for
any n >= 0 and p >= 1; owners beyond n get empty ranges, so that sizes differ by at most one and the
ranges put together are the whole, in order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Range(NamedTuple):
    """The half-open range [start, stop) of global indices."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def intersect(self, other: "Range") -> "Range":
        """The common part; empty, with start == stop, where there is none."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def block(n: int, p: int, owner: int) -> Range:
    """The range of `n` elements that `owner` (of 0 … p-1) holds."""
    assert n >= 0, n
    assert 0 <= owner < p, (owner, p)
    size, larger = divmod(n, p)
    start = owner * size + min(owner, larger)
    return Range(start, start + size + (owner < larger))


def blocks(n: int, p: int) -> list[Range]:
    """All `p` ranges in order of their owners."""
    return [block(n, p, owner) for owner in range(p)]


def nested_blocks(n: int, cuts: Sequence[int]) -> list[Range]:
    """`n` elements cut into cuts[0] blocks, each of those into cuts[1], and so on; all in order."""
    ranges = [Range(0, n)]
    for p in cuts:
        ranges = [
            Range(r.start + part.start, r.start + part.stop)
            for r in ranges
            for part in blocks(r.size, p)
        ]
    return ranges


def counts(n: int, p: int) -> list[int]:
    """The sizes of all `p` ranges."""
    return [block.size for block in blocks(n, p)]


def owner_of(index: int, n: int, p: int) -> int:
    """The owner whose range holds the global `index`."""
    assert 0 <= index < n, (index, n)
    size, larger = divmod(n, p)
    boundary = larger * (size + 1)
    return index // (size + 1) if index < boundary else larger + (index - boundary) // size


def pieces(n: int, piece: int) -> Iterator[Range]:
    """Consecutive ranges of at most `piece` elements that cover [0, n)."""
    assert piece >= 1, piece
    for start in range(0, n, piece):
        yield Range(start, min(n, start + piece))


def growing_pieces(n: int, first: int, piece: int) -> Iterator[Range]:
    """Consecutive ranges that cover [0, n): one of `first` elements, each next one twice as long,
    up to `piece`.
    """
    assert 1 <= first <= piece, (first, piece)
    start, size = 0, first
    while start < n:
        yield Range(start, min(n, start + size))
        start, size = start + size, min(piece, 2 * size)
