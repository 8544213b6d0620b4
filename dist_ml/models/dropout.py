"""Dropout whose mask is computed from who the sample is, so that any rank would draw the same."""

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.counter_random import Words, bits, lanes, stream

Keys = Words  # uint64 [b], one for each sample of a batch

_LEVELS = 1 << 16


class Dropout:
    """Zeroes each activation with `probability` (rounded to 2^-16) and divides the others by the
    share that stays.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014),
    section 10, scaled in training.
    """

    def __init__(self, probability: float, seed: int) -> None:
        assert 0 <= probability < 1, probability
        self._seed = seed
        self._first_kept = min(round(probability * _LEVELS), _LEVELS - 1)
        self._scale = _LEVELS / (_LEVELS - self._first_kept)

    def keys(self, step: int, sample_ids: NDArray[np.int64]) -> Keys:
        """One key a sample for this optimizer step, for all layers."""
        return bits(stream("dropout", self._seed, step), sample_ids)

    def __call__(self, x: torch.Tensor, keys: Keys, layer: int) -> torch.Tensor:
        """x [b, features] times the factors of hidden `layer`, in the dtype of x;
        differentiable.
        """
        exact = np.float64 if x.dtype == torch.float64 else np.float32
        factors = np.multiply(self.kept(keys, layer, x.shape[1]), exact(self._scale))
        return x * torch.from_numpy(factors).to(device=x.device, dtype=x.dtype)

    def kept(self, keys: Keys, layer: int, num_features: int) -> NDArray[np.bool_]:
        """Bool [b, features], true where the activation stays; a function of (key, layer, feature),
        16 random bits each.
        """
        levels = lanes(bits(stream("dropout layer", layer), keys), num_features, np.uint16)
        return np.asarray(levels >= self._first_kept)
