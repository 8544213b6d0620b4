"""Which samples pass through a model: what layers with randomness compute their numbers from."""

import numpy as np
from numpy.typing import NDArray

from dist_ml.counter_random import Words, bits, stream


class StepContext:
    """Set before each forward pass that trains; cleared, layers behave as in evaluation.

    Numbers drawn from it depend on (seed, step, sample id) alone: not on ranks, micro-batches or
    the order of samples.
    """

    def __init__(self) -> None:
        self.draws = True  # False where tensors have no data: sizes are asked for, no numbers
        self._step = 0
        self._sample_ids: NDArray[np.int64] | None = None
        self._keys: dict[int, Words] = {}

    def set(self, step: int, sample_ids: NDArray[np.int64]) -> None:
        """The next forward pass is of optimizer step `step` on the samples int64 [b]."""
        self._step = step
        self._sample_ids = sample_ids
        self._keys.clear()

    def clear(self) -> None:
        """The next forward pass evaluates."""
        self._sample_ids = None
        self._keys.clear()

    @property
    def trains(self) -> bool:
        return self._sample_ids is not None

    def sample_keys(self, seed: int) -> Words:
        """uint64 [b]: one key a sample for this step, computed once for all layers."""
        assert self._sample_ids is not None, "keys are of a training step; call set first"
        keys = self._keys.get(seed)
        if keys is None:
            keys = bits(stream("dropout", seed, self._step), self._sample_ids)
            self._keys[seed] = keys
        return keys
