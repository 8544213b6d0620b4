"""Models by name, and what they are trained for."""

from typing import NamedTuple, Protocol

import torch

from dist_ml.config.data import Task
from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.errors import ConfigError
from dist_ml.models.blocks import BlockModel, forward
from dist_ml.models.cnn import CNN, cnn
from dist_ml.models.layers import LayerFactory, WholeLayers
from dist_ml.models.mlp import MLP, mlp
from dist_ml.models.objective import LOSSES, Objective, choose_objective
from dist_ml.models.samples import Samples
from dist_ml.models.transformer import Transformer, transformer


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
    """How a model is made, the keys that it reads, what it can be trained for, and the option of
    `optimizer` that it comes with (None: the configuration's).
    """

    build: BuildModel
    reads: tuple[str, ...]
    tasks: tuple[Task, ...] = ("classification", "regression")
    usual_optimizer: str | None = None


# A new model is a module and an entry here.
MODELS: dict[str, ModelMember] = {
    "mlp": ModelMember(mlp, ("model.hidden", "model.activation", "model.dropout")),
    "cnn": ModelMember(
        cnn,
        ("model.channels", "model.blocks_per_stage", "model.groups", "model.dropout"),
        usual_optimizer="adamw",
    ),
    "transformer": ModelMember(
        transformer,
        (
            "model.width",
            "model.depth",
            "model.heads",
            "model.feedforward",
            "model.activation",
            "model.positions",
            "model.tied",
            "model.dropout",
        ),
        ("classification", "regression", "next_token"),
        usual_optimizer="adamw",  # it learns little by plain SGD
    ),
}

__all__ = [
    "CNN",
    "LOSSES",
    "MLP",
    "MODELS",
    "BlockModel",
    "LayerFactory",
    "ModelMember",
    "Objective",
    "Samples",
    "Transformer",
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
    """The model that `config` names; `ConfigError` lists the names there are, and those that can be
    trained for the task of `samples` where this one can't.
    """
    require_one_of("model.name", config.name, MODELS)
    member = MODELS[config.name]
    if samples.task not in member.tasks:
        able = [name for name, other in MODELS.items() if samples.task in other.tasks]
        raise ConfigError(
            f"model={config.name} can't be trained for the {samples.task} of this data; use "
            f"model={' or model='.join(able)}"
        )
    return member.build(config, samples, seed, dtype, layers or WholeLayers())
