"""Dropout whose mask is computed from who the sample is, so that any rank would draw the same."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_ml.counter_random import Words, bits, lanes, stream
from dist_ml.models.step_context import StepContext

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zeroes each activation with `probability` (rounded to 2^-16) and divides the others by the
    share that stays; does nothing where `context` isn't that of a training step.

    `layer` tells the masks of a model's dropout layers apart.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014),
    section 10, scaled in training.
    """

    def __init__(self, probability: float, seed: int, layer: int, context: StepContext) -> None:
        super().__init__()
        assert 0 <= probability < 1, probability
        self._seed = seed
        self._layer = layer
        self._context = context
        self._first_kept = min(round(probability * _LEVELS), _LEVELS - 1)
        self._scale = _LEVELS / (_LEVELS - self._first_kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [b, features] with this step's mask, in the dtype of x; differentiable."""
        if not self._context.trains or not self._first_kept:
            return x
        exact = np.float64 if x.dtype == torch.float64 else np.float32
        kept = self.kept(self._context.sample_keys(self._seed), x.shape[1])
        factors = torch.from_numpy(np.multiply(kept, exact(self._scale)))
        return x * factors.to(device=x.device, dtype=x.dtype)

    def kept(self, keys: Words, num_features: int) -> NDArray[np.bool_]:
        """Bool [b, features], true where the activation stays; a function of (key, layer, feature),
        16 random bits each.
        """
        levels = lanes(bits(stream("dropout layer", self._layer), keys), num_features, np.uint16)
        return np.asarray(levels >= self._first_kept)
