"""A tiny Transformer on a few windows of the packaged text."""

import dataclasses
from typing import Any

from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig, TrainConfig
from tests.pipeline_world import settings

TEXT = DataConfig("text", num_tokens=6, test_fraction=0.1, num_train=30, num_test=11)
MODEL = ModelConfig("transformer", width=8, depth=3, heads=2, activation="gelu", dropout=0.1)
# Without rotary positions no output depends on the bias of keys: its gradient is rounding alone,
# and AdamW, which divides by its size, would make steps of that.
SGD = OptimizerConfig("sgd", lr=0.1, weight_decay=0.0, momentum=0.5)
ADAMW = OptimizerConfig("adamw", lr=0.01, weight_decay=0.1)


def text_config(**changes: Any) -> TrainConfig:
    """Batches of 13, 13 and 4 windows, with dropout; a mapping changes fields of the model."""
    model = dataclasses.replace(MODEL, **changes.pop("model", {}))
    return settings(**{"data": TEXT, "model": model, "optimizer": ADAMW, **changes})
