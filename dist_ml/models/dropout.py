"""Dropout whose mask is computed from who the sample is, so that any rank would draw the same."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_ml.counter_random import Words, bits, lanes, stream
from dist_ml.models.spread import WHOLE, Spread
from dist_ml.models.step_context import StepContext
from dist_ml.partition import Range

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zeroes each activation with `probability` (rounded to 2^-16) and divides the others by the
    share that stays; does nothing where `context` isn't that of a training step.

    `layer` tells the masks of a model's dropout layers apart. `num_features` of an activation [b,
    ..., features], and how it lies: a rank uses the part of the mask that is its own. By default
    the activation is whole.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014),
    section 10, scaled in training.
    """

    def __init__(
        self,
        probability: float,
        seed: int,
        layer: int,
        context: StepContext,
        num_features: int | None = None,
        spread: Spread = WHOLE,
    ) -> None:
        super().__init__()
        assert 0 <= probability < 1, probability
        self._seed = seed
        self._layer = layer
        self._context = context
        self._num_features, self._spread = num_features, spread
        self._first_kept = min(round(probability * _LEVELS), _LEVELS - 1)
        self._scale = _LEVELS / (_LEVELS - self._first_kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [b, features], or [b, positions, features], or this rank's part of it, with this step's
        mask, in the dtype of x; differentiable.
        """
        if not self._context.trains or not self._first_kept:
            return x
        if not self._context.draws:
            return x * torch.empty_like(x)
        exact = np.float64 if x.dtype == torch.float64 else np.float32
        keys = self._context.sample_keys(self._seed)
        keys = keys[self._spread.row_range(len(keys)).slice]
        num_features, columns = x.shape[-1], Range(0, x.shape[-1])
        if self._num_features is not None:
            num_features = self._num_features
            columns = self._spread.feature_range(num_features)
        positions = x.shape[1:-1]
        kept = self.kept(keys, math.prod(positions) * num_features)
        kept = kept.reshape(len(keys), *positions, num_features)[..., columns.slice]
        factors = torch.from_numpy(np.multiply(kept, exact(self._scale)))
        return x * factors.to(device=x.device, dtype=x.dtype)

    def kept(self, keys: Words, num_features: int) -> NDArray[np.bool_]:
        """Bool [b, features], true where the activation stays; a function of (key, layer, feature),
        16 random bits each. Features of positions follow one another, position by position.
        """
        levels = lanes(bits(stream("dropout layer", self._layer), keys), num_features, np.uint16)
        return np.asarray(levels >= self._first_kept)
