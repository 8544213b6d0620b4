"""What a model takes of memory, told before it is made."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from dist_ml.config.model import ModelConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.memory import physical_bytes, spell_bytes


def require_mlp_fits(widths: Sequence[int], dtype: torch.dtype) -> None:
    """`ConfigError` where the parameters of linear layers of these widths and their gradients are
    more than this machine's memory.
    """
    layers = [(inputs + 1) * outputs for inputs, outputs in pairwise(widths)]
    largest = layers.index(max(layers))
    _require_fits(
        sum(layers),
        dtype,
        f"most of it for the layer of {widths[largest]} inputs and {widths[largest + 1]} outputs",
        "use smaller model.hidden, or data with fewer features or outputs (data.num_outputs)",
    )


def require_cnn_fits(
    config: ModelConfig, channels_in: int, num_outputs: int, dtype: torch.dtype
) -> None:
    """The same for the convolutions of the configuration, each of 3 x 3, and the last layer."""
    first, last = config.channels[0], config.channels[-1]
    num_blocks = config.blocks_per_stage
    weights = 9 * first * (channels_in + first) + last * num_outputs
    for before, channels in pairwise((first, *config.channels)):
        weights += 9 * channels * (before + (2 * num_blocks - 1) * channels)
    _require_fits(
        weights,
        dtype,
        f"with {last} channels in the last stage",
        "use smaller model.channels, fewer model.blocks_per_stage, or data with fewer outputs",
    )


def _require_fits(num_parameters: int, dtype: torch.dtype, share: str, remedy: str) -> None:
    needed, memory = 2 * num_parameters * dtype.itemsize, physical_bytes()
    if needed > memory:
        raise ConfigError(
            f"the model's parameters and gradients take {spell_bytes(needed)}, {share}, but this "
            f"machine has {spell_bytes(memory)}; {remedy}"
        )
