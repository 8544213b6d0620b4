"""Sums of sparse vectors: sorted lists in, one sorted list out.

Two lists are merged in one compiled pass where numba is installed, by sorting their concatenation
otherwise; both add where indices meet, in the order of their arguments, so that the two agree to
the last bit.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from dist_ml import compiled
from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries

Merge = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def merge(left: Entries, right: Entries) -> Entries:
    """left + right. Time is linear in their sizes."""
    if not left.size or not right.size:
        return right if not left.size else left
    return Entries(*_merge_function()(left.indices, left.values, right.indices, right.values))


def merge_all(parts: Sequence[Entries]) -> Entries:
    """The sum of all parts, pairwise as a tree, so that no entry is copied more than
    log2(len(parts)) times.
    """
    assert parts, "at least one part tells the dtype"
    level = list(parts)
    while len(level) > 1:
        merged = [merge(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = merged + level[2 * len(merged) :]
    return level[0]


def merge_by_sorting(
    left_indices: Array, left_values: Array, right_indices: Array, right_values: Array
) -> tuple[Array, Array]:
    """The plain reference of the compiled merge."""
    indices = np.concatenate([left_indices, right_indices])
    values = np.concatenate([left_values, right_values])
    order = np.argsort(indices, kind="stable")
    indices, values = indices[order], values[order]
    first = np.flatnonzero(np.diff(indices, prepend=-1))
    return indices[first], np.add.reduceat(values, first)


@cache
def _merge_function() -> Merge:
    if not compiled.available():
        return merge_by_sorting
    from dist_ml.comm.sparse.compiled_loops import merge_lists

    return merge_lists
