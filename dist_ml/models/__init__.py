"""Models by name, and their losses."""

from typing import Protocol

import torch
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.models.losses import LOSSES, Loss, choose_loss
from dist_ml.models.mlp import MLP, MakeLinear


class BuildModel(Protocol):
    """Makes the model of a configuration; the same weights on every rank, for they depend on `seed`
    alone.
    """

    def __call__(
        self,
        config: ModelConfig,
        num_features: int,
        num_outputs: int,
        seed: int,
        dtype: torch.dtype,
        linear: MakeLinear,
    ) -> MLP: ...


def mlp(
    config: ModelConfig,
    num_features: int,
    num_outputs: int,
    seed: int,
    dtype: torch.dtype,
    linear: MakeLinear,
) -> MLP:
    """The hidden widths are the configuration's, the outer ones the data's."""
    return MLP(
        (num_features, *config.hidden, num_outputs),
        config.activation,
        config.dropout,
        seed,
        dtype,
        linear,
    )


MODELS: dict[str, BuildModel] = {"mlp": mlp}

__all__ = ["LOSSES", "MLP", "MODELS", "Loss", "build_model", "choose_loss"]


def build_model(
    config: ModelConfig,
    num_features: int,
    num_outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    linear: MakeLinear = nn.Linear,
) -> MLP:
    """The model that `config` names. `linear(inputs, outputs)` makes each layer: the seam for
    another kernel.
    """
    return MODELS[config.name](config, num_features, num_outputs, seed, dtype, linear)
