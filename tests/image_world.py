"""Training a small CNN on digits, for comparisons with one process."""

import dataclasses
from typing import Any

from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import TrainConfig
from tests.pipeline_world import settings

# Six residual blocks, the stem and the head: enough for two stages on each of four ranks.
MODEL = ModelConfig("cnn", channels=(4, 4, 8), blocks_per_stage=2, groups=2, dropout=0.2)


def on_digits(**changes: Any) -> TrainConfig:
    """30 images in batches of 13, 13 and 4, with dropout."""
    config = settings(model=MODEL, **changes)
    data = DataConfig("digits", num_train=30, num_test=17, test_every=5)
    return dataclasses.replace(config, data=data)
