"""Models by name, and what they are trained for."""

from typing import Protocol

import torch

from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.models.blocks import BlockModel, LinearFactory, forward, plain_linear
from dist_ml.models.mlp import MLP, mlp
from dist_ml.models.objective import LOSSES, Objective, choose_objective


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
        linear: LinearFactory,
    ) -> BlockModel: ...


MODELS: dict[str, BuildModel] = {"mlp": mlp}

__all__ = [
    "LOSSES",
    "MLP",
    "MODELS",
    "BlockModel",
    "LinearFactory",
    "Objective",
    "build_model",
    "choose_objective",
    "forward",
]


def build_model(
    config: ModelConfig,
    num_features: int,
    num_outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    linear: LinearFactory = plain_linear,
) -> BlockModel:
    """The model that `config` names; `ConfigError` lists the names there are."""
    require_one_of("model.name", config.name, MODELS)
    return MODELS[config.name](config, num_features, num_outputs, seed, dtype, linear)
