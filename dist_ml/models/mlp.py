"""A multi-layer perceptron whose weights and dropout masks don't depend on how the work is spread
over ranks.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_ml.config.model import Activation
from dist_ml.counter_random import stream, uniform
from dist_ml.models.dropout import Dropout, Keys
from dist_ml.partition import pieces

MakeLinear = Callable[[int, int], nn.Linear]

# Those whose derivative is a function of their result overwrite their input, which a linear layer
# has no more use for.
ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "silu": nn.functional.silu,
}
_GAINS: dict[Activation, float] = {
    "relu": 2**0.5,
    "gelu": 2**0.5,
    "tanh": 5 / 3,
    "sigmoid": 1.0,
    "silu": 2**0.5,
}

_WEIGHTS_AT_ONCE = 1 << 16


class MLP(nn.Module):
    """Linear layers of the given `widths` with an activation, and dropout, between them.

    The state dict holds plain `layers.<i>.weight` [widths[i+1], widths[i]] and `layers.<i>.bias`,
    whatever `linear` brings.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation = "relu",
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        linear: MakeLinear = nn.Linear,
    ) -> None:
        super().__init__()
        assert len(widths) >= 2, widths
        self.widths = tuple(widths)
        self.layers = nn.ModuleList(
            linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1)
        ).to(dtype)
        self._activation = ACTIVATIONS[activation]
        self._dropout = Dropout(dropout, seed) if dropout > 0 else None
        for index, layer in enumerate(self.layers):
            gain = 1.0 if index == len(widths) - 2 else _GAINS[activation]
            initialise(layer, gain, stream("initial weights", seed, index))

    def forward(self, x: torch.Tensor, keys: Keys | None = None) -> torch.Tensor:
        """Outputs [b, widths[-1]] (no softmax) of samples x [b, widths[0]].

        `keys` are what `dropout_keys` gave for the same samples in the same order; None drops
        nothing, as in evaluation.
        """
        for index, layer in enumerate(self.layers):
            if index > 0:
                x = self._activation(x)
                if keys is not None and self._dropout is not None:
                    x = self._dropout(x, keys, index - 1)
            x = layer(x)
        return x

    def dropout_keys(self, step: int, sample_ids: NDArray[np.int64]) -> Keys | None:
        """What `forward` needs to drop activations in optimizer step `step` of the run; None where
        nothing is dropped.

        The masks depend on (seed, step, sample id, layer, feature) alone: not on ranks,
        microbatches or the order of samples.
        """
        return None if self._dropout is None else self._dropout.keys(step, sample_ids)


def initialise(layer: nn.Module, gain: float, key: int) -> None:
    """Zero bias, and weights uniform in ± gain sqrt(3 / inputs): element j (row by row) is a
    function of (key, j).

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2, with the
    gain of each activation.
    """
    assert isinstance(layer, nn.Linear)
    bound = gain * math.sqrt(3 / layer.in_features)
    flat = layer.weight.detach().view(-1).numpy()
    for part in pieces(flat.size, _WEIGHTS_AT_ONCE):
        numbers = uniform(key, np.arange(part.start, part.stop, dtype=np.uint64))
        flat[part.slice] = (2 * bound) * numbers - bound
    if layer.bias is not None:
        layer.bias.detach().zero_()
