"""The k largest magnitudes, exactly, at little more than the price of one pass."""

from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries
from dist_ml.data_parallel.residual import Residual
from dist_ml.data_parallel.selection.selection import (
    floor_of,
    quantile_threshold,
    safe_share,
    sample_positions,
    take_exactly,
)
from dist_ml.data_parallel.selection_kernels import Extracted

ROOM = 2


class ExactTopk:
    """Takes all candidates above a threshold that a sample finds safe, then the k largest of these
    few.

    One pass and a partition of a little more than k elements; exact, because a threshold that lets
    k or more through has the k largest among them, and others are corrected. Of equal magnitudes
    those with the lowest indices are taken.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._step = 0

    def select(self, residual: Residual, gradient: Array, k: int, scale: float = 1.0) -> Entries:
        self._step += 1
        floor = floor_of(residual)
        threshold = floor
        if k < residual.length:
            at = sample_positions(residual.length, [self._seed, self._step])
            share = safe_share(k, residual.length)
            threshold = max(
                floor, quantile_threshold(residual.sample_magnitudes(at, gradient, scale), share)
            )
        taken = residual.accumulate(gradient, threshold, ROOM * k, scale)
        return correct_selection(residual, taken, threshold, k, k, [self._seed, self._step])[0]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]


def correct_selection(
    residual: Residual, taken: Extracted, threshold: float, k: int, fewest: int, seed: list[int]
) -> tuple[Entries, float]:
    """The k largest of everything, or at least `fewest` of them, given what a pass with `threshold`
    took; and the last magnitude.

    Too many: the k-th magnitude of those that found room is a higher threshold that still has k
    above it. Too few: a sample tells a lower one, and a lower one still.
    """
    floor, room, share = floor_of(residual), ROOM * k, safe_share(k, residual.length)
    while taken.overflowed or (taken.entries.size < fewest and threshold > floor):
        if taken.overflowed:
            magnitudes = np.abs(taken.entries.values)
            higher = float(np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k])
            residual.restore(taken.entries)
            if higher > threshold:
                threshold = higher
            else:
                room = residual.length  # ties
        else:
            residual.restore(taken.entries)
            lower = quantile_threshold(
                residual.sample_magnitudes(sample_positions(residual.length, seed)), share
            )
            threshold = max(
                floor,
                lower if lower < threshold else threshold / 2 if threshold > 1e3 * floor else floor,
            )
            share = min(1.0, 2 * share)
        taken = residual.sweep(threshold, room)
    return take_exactly(residual, taken.entries, k)
