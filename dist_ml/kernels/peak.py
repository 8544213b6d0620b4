"""How fast one thread can multiply and add at all: the roof over every product, whoever wrote it.

A polynomial by Horner's scheme on values that stay in the first-level cache: one load and one store
for `_DEGREE` fused multiply-adds, and enough independent values that each unit gets one every
cycle.
"""

import time
from functools import cache
from typing import Any

import numpy as np

from dist_ml import compiled

_VALUES, _PASSES, _DEGREE, _REPEATS = 2048, 4000, 16, 40


def flops_per_second() -> float | None:
    """Of one thread in float32, the best of many short tries; None where there is no compiler to
    measure it with.
    """
    if not compiled.available():
        return None
    values, half = np.ones(_VALUES, np.float32), np.float32(0.5)
    horner = _compiled()
    horner(values, half, half, 1)
    return max(_rate(horner, values, half) for _ in range(_REPEATS))


def horner(values: Any, factor: Any, term: Any, passes: int) -> None:
    """Each value v becomes v factor + term, `_DEGREE` times a pass, in place."""
    for _ in range(passes):
        for i in range(values.size):
            value = values[i]
            for _ in range(_DEGREE):
                value = value * factor + term
            values[i] = value


@cache
def _compiled() -> Any:
    import numba

    return numba.njit(nogil=True, fastmath={"contract"})(horner)


def _rate(call: Any, values: Any, half: Any) -> float:
    start = time.perf_counter()
    call(values, half, half, _PASSES)
    return 2.0 * _DEGREE * _VALUES * _PASSES / (time.perf_counter() - start)
