"""The k largest magnitudes, exactly, at little more than the price of one pass."""

import math
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries
from dist_ml.data_parallel.passes import Taken
from dist_ml.data_parallel.residual import Residual
from dist_ml.data_parallel.selection.selection import floor_of, quantile_threshold, sample, take_exactly

# A guess aims at a quarter more than k candidates, and there is room for twice k.
AIM, ROOM = 1.25, 2


class ExactTopk:
    """Takes all candidates above a guess, then the k largest of these few: exact whenever there were k candidates.

    The guess is a little under the last step's k-th magnitude, so one pass and a partition of 1.25 k elements are all, as a rule;
    a guess that was too high or too low costs further passes. Of equal magnitudes those with the lowest indices are taken.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._guess = 0.0

    def select(self, residual: Residual, gradient: Array, k: int, scale: float = 1.0) -> Entries:
        guess = self._guess
        if guess <= 0:
            guess = quantile_threshold(sample(residual, gradient, scale, [self._seed]), AIM * k / residual.length)
        guess = max(guess, floor_of(residual)) if k < residual.length else floor_of(residual)
        taken = residual.accumulate(gradient, guess, ROOM * k, scale)
        entries, threshold = settle(residual, taken, guess, k)
        self._guess = threshold * (1 - math.log(AIM) / max(1.0, math.log(residual.length / k)))
        return entries

    def state_dict(self) -> dict[str, Any]:
        return {"guess": self._guess}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._guess = state["guess"]


def settle(residual: Residual, taken: Taken, threshold: float, k: int) -> tuple[Entries, float]:
    """The exact k largest of everything, given what a pass with `threshold` took; and the k-th magnitude.

    Too many: the k-th magnitude of those that found room is a higher threshold that still has k above it. Too few: lower it.
    """
    room = ROOM * k
    floor = floor_of(residual)
    while taken.overflowed or (taken.entries.size < k and threshold > floor):
        higher = threshold
        if taken.overflowed and taken.entries.size >= k:
            magnitudes = np.abs(taken.entries.values)
            higher = float(np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k])
        residual.give_back(taken.entries)
        if not taken.overflowed:
            threshold = max(floor, threshold * 0.7 if threshold > 1e3 * floor else floor)
        elif higher > threshold:
            threshold = higher
        else:
            room = residual.length  # ties
        taken = residual.sweep(threshold, room)
    return take_exactly(residual, taken.entries, k)
