"""Models by name, and what they are trained for."""

from typing import NamedTuple, Protocol

import torch

from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.models.blocks import BlockModel, forward
from dist_ml.models.layers import LayerFactory, WholeLayers
from dist_ml.models.mlp import MLP, mlp
from dist_ml.models.objective import LOSSES, Objective, choose_objective
from dist_ml.models.samples import Samples


class BuildModel(Protocol):
    """Makes the model of a configuration; the same weights on every rank, for they depend on `seed`
    alone.
    """

    def __call__(
        self,
        config: ModelConfig,
        samples: Samples,
        seed: int,
        dtype: torch.dtype,
        layers: LayerFactory,
    ) -> BlockModel: ...


class ModelMember(NamedTuple):
    """How a model is made, and the keys that it reads."""

    build: BuildModel
    reads: tuple[str, ...]


# A new model is a module and an entry here.
MODELS: dict[str, ModelMember] = {
    "mlp": ModelMember(mlp, ("model.hidden", "model.activation", "model.dropout")),
}

__all__ = [
    "LOSSES",
    "MLP",
    "MODELS",
    "BlockModel",
    "LayerFactory",
    "ModelMember",
    "Objective",
    "Samples",
    "WholeLayers",
    "build_model",
    "choose_objective",
    "forward",
]


def build_model(
    config: ModelConfig,
    samples: Samples,
    seed: int,
    dtype: torch.dtype = torch.float32,
    layers: LayerFactory | None = None,
) -> BlockModel:
    """The model that `config` names; `ConfigError` lists the names there are."""
    require_one_of("model.name", config.name, MODELS)
    return MODELS[config.name].build(config, samples, seed, dtype, layers or WholeLayers())
