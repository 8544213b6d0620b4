"""What every way to select is given and returns."""

import math
from typing import Any, Protocol

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries, largest
from dist_ml.data_parallel.residual import Residual

SAMPLE = 1 << 16
# How far from k a threshold that is not exact may take the count (Ok-Topk, PPoPP 2022, section 5.2:
# about a third).
LOWEST, HIGHEST = 2 / 3, 4 / 3


class Selection(Protocol):
    """Decides what leaves the residual in a step.

    `select` adds `scale * gradient` to the residual and moves about k entries out of it, ascending,
    none of them zero. What is selected + residual = accumulated gradient, to the last bit.
    `NonFiniteError`, with the residual as before, when the gradient is not finite.
    """

    def select(
        self, residual: Residual, gradient: Array, k: int, scale: float = 1.0
    ) -> Entries: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def count_of(density: float, length: int) -> int:
    """k: the density's share of `length`, at least 1 element, at most all."""
    return min(length, max(1, round(density * length)))


def floor_of(residual: Residual) -> float:
    """The smallest threshold: zeros are never worth sending."""
    return float(np.finfo(residual.values.dtype).smallest_subnormal)


def sample_positions(length: int, seed: list[int]) -> Array:
    """Random positions of 0 … length-1, with replacement: at most `SAMPLE`; all of them where there
    are not more.
    """
    if length <= SAMPLE:
        return np.arange(length)
    return np.random.default_rng(seed).integers(0, length, SAMPLE)


def safe_share(k: int, length: int) -> float:
    """The share of a sample that holds the k largest of `length`, four standard deviations beyond
    the expected one.
    """
    share = k / length
    return share + 4 * math.sqrt(share / min(length, SAMPLE)) if length > SAMPLE else share


def quantile_threshold(magnitudes: Array, share: float) -> float:
    """The magnitude that a `share` of the sample reaches."""
    rank = min(magnitudes.size, max(1, round(share * magnitudes.size)))
    return float(np.partition(magnitudes, magnitudes.size - rank)[magnitudes.size - rank])


def take_exactly(residual: Residual, candidates: Entries, k: int) -> tuple[Entries, float]:
    """The k largest of the candidates, the others given back; and the smallest magnitude taken."""
    kept, dropped = largest(candidates, k)
    residual.restore(dropped)
    return kept, float(np.abs(kept.values).min()) if kept.size else 0.0
