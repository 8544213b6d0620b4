"""The memory of a sparse run's ranks, dealt to another number of ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array


def reshard_states(states: Sequence[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """The `SparseReducer` states of all ranks of a run as those of another number of ranks:
    residuals keep their sum.

    Thresholds and regions are left out: they depend on the number of ranks, and are found anew in
    the first step.
    """
    parts = range(len(states[0]["parts"]))
    dealt = [reshard([state["parts"][part]["arrays"] for state in states], ranks) for part in parts]
    same = {"steps": states[0]["steps"], "velocity": states[0]["velocity"]}
    return [
        {**same, "parts": [{"arrays": dealt[part][rank]} for part in parts]}
        for rank in range(ranks)
    ]


def reshard(states: Sequence[Mapping[str, Array]], ranks: int) -> list[dict[str, Array]]:
    """The residual arrays of all ranks of a run, dealt to another number of ranks, the sum of each
    array over ranks preserved.

    Rank i of the new run takes the sum of the old ranks i, i + ranks, …; new ranks beyond the old
    ones begin at zero. Sums are in float64 and rounded once.
    """
    assert states
    assert ranks >= 1, ranks
    if ranks == len(states):
        return [dict(state) for state in states]
    dealt = []
    for rank in range(ranks):
        inherited = states[rank::ranks]
        dealt.append(
            {
                name: _sum([state[name] for state in inherited], like=states[0][name])
                for name in states[0]
            }
        )
    return dealt


def _sum(arrays: Sequence[Array], like: Array) -> Array:
    total: Array = np.zeros(like.shape, np.float64)
    for array in arrays:
        total += array
    return total.astype(like.dtype)
