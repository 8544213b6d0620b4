"""Training on a mesh of data x pipeline x operator, told so that it can be compared."""

import dataclasses
from typing import Any

from pipeline_world import HIDDEN

from dist_ml.config.model import ModelConfig
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig

SHALLOW = ModelConfig(hidden=HIDDEN[:5], activation="tanh", dropout=0.1)


def on_mesh(
    config: TrainConfig, data: int, pipeline: int, operator: int, **choices: Any
) -> TrainConfig:
    """`config` on data x pipeline x operator ranks."""
    stages = PipelineConfig(choices.pop("schedule")) if pipeline > 1 else PipelineConfig()
    return dataclasses.replace(
        config,
        mesh=MeshConfig(data, pipeline, operator),
        pipeline=stages,
        operator_parallel=OperatorConfig(**choices),
    )
