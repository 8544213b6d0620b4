"""The passes over a rank's gradient and residual that every selection is made of, compiled or
plain.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from dist_ml import compiled
from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries
from dist_ml.partition import Range

# The compiled pass emits whole blocks, so it needs this much room beyond what is wanted.
SLACK = 64

# (part of the vector, room for indices, room for values) -> (number emitted, was there more, was
# something not finite)
Pass = Callable[[Range, Array, Array], tuple[int, bool, bool]]


class Extracted(NamedTuple):
    """What a pass moved out of the residual, whether elements above the threshold stayed for lack
    of room, and whether a sum was not finite and left out."""

    entries: Entries
    overflowed: bool
    bad: bool


def emit(ranges: Sequence[Range], dtype: DTypeLike, capacity: int, run: Pass) -> Extracted:
    """Run a pass over each range, into one output with room for `capacity` entries."""
    room = min(capacity, sum(part.size for part in ranges)) + SLACK
    indices, values = np.empty(room, np.int32), np.empty(room, dtype)
    count, overflowed, bad = 0, False, False
    for part in ranges:
        emitted, more, not_finite = run(part, indices[count:], values[count:])
        count, overflowed, bad = count + emitted, overflowed or more, bad or not_finite
    return Extracted(Entries(indices[:count], values[:count]), overflowed, bad)


@cache
def kernels() -> ModuleType:
    """The compiled passes where numba is installed, their plain reference otherwise."""
    if compiled.available():
        from dist_ml.data_parallel.selection_kernels import compiled_kernels

        return compiled_kernels
    from dist_ml.data_parallel.selection_kernels import plain_kernels

    return plain_kernels
