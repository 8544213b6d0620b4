"""What a model takes of memory, told before it is made."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from dist_ml.errors import ConfigError
from dist_ml.measure.memory import physical_bytes, spell_bytes


def require_mlp_fits(widths: Sequence[int], dtype: torch.dtype) -> None:
    """`ConfigError` where the parameters of linear layers of these widths and their gradients are
    more than this machine's memory.
    """
    layers = [(inputs + 1) * outputs for inputs, outputs in pairwise(widths)]
    needed, memory = 2 * sum(layers) * dtype.itemsize, physical_bytes()
    if needed > memory:
        largest = layers.index(max(layers))
        raise ConfigError(
            f"the model's parameters and gradients take {spell_bytes(needed)}, most of it for the "
            f"layer of {widths[largest]} inputs and {widths[largest + 1]} outputs, but this "
            f"machine has {spell_bytes(memory)}; use smaller model.hidden, or data with fewer "
            "features or outputs (data.num_outputs)"
        )


def require_parameters_fit(model: nn.Module, keys: str) -> None:
    """`ConfigError` where the parameters of a model on the meta device and their gradients are more
    than this machine's memory; `keys` are what to make smaller.
    """
    numbers = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    needed, memory = 2 * sum(numbers), physical_bytes()
    if needed > memory:
        raise ConfigError(
            f"the model's parameters and gradients take {spell_bytes(needed)}, but this machine "
            f"has {spell_bytes(memory)}; use a smaller {keys}"
        )
