"""A rank's block cut into consecutive segments, each dealt evenly over the ranks that share it:
what an algorithm gathers or reduces step by step.
"""

from functools import lru_cache

from dist_ml import partition
from dist_ml.partition import Range

Cuts = tuple[int, ...]


def segments(rows: int, cols: int, row_cuts: Cuts, col_cuts: Cuts) -> list[tuple[Range, Range]]:
    """The (rows, columns) of each segment of a block, along the columns first. Cuts of (3, 2) make
    three parts of a dim, and two of each of those.
    """
    cut_rows = partition.nested_blocks(rows, row_cuts)
    cut_cols = partition.nested_blocks(cols, col_cuts)
    return [(r, c) for r in cut_rows for c in cut_cols]


@lru_cache(maxsize=4096)
def shares(
    rows: int, cols: int, row_cuts: Cuts, col_cuts: Cuts, owners: int
) -> tuple[tuple[int, ...], ...]:
    """For each segment, how many elements each owner holds: balanced, and who gets one more goes
    round from segment to segment, so that the totals balance too.
    """
    turn, counts = 0, []
    for r, c in segments(rows, cols, row_cuts, col_cuts):
        balanced = partition.counts(r.size * c.size, owners)
        counts.append(tuple(balanced[(owner - turn) % owners] for owner in range(owners)))
        turn = (turn + r.size * c.size) % owners
    return tuple(counts)


@lru_cache(maxsize=4096)
def owned_words(
    rows: int, cols: int, row_cuts: Cuts, col_cuts: Cuts, owners: int, owner: int
) -> int:
    """The elements of all segments that one owner holds: the sum of its `shares`, without those of
    the others, who may be many.
    """
    total = turn = 0
    for r, c in segments(rows, cols, row_cuts, col_cuts):
        size = r.size * c.size
        share, larger = divmod(size, owners)
        total += share + ((owner - turn) % owners < larger)
        turn = (turn + size) % owners
    return total
