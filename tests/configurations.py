"""Configurations as the command line composes them, each once a process: Hydra takes 0.1 s."""

import copy
import functools
from typing import Any

from dist_ml.cli import arguments, compose
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig


def mapping(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The whole configuration called `name`, with these overrides, as a plain mapping."""
    return copy.deepcopy(_composed(name, overrides))


def train_config(*overrides: str) -> TrainConfig:
    """A run's, with these overrides."""
    return from_mapping(TrainConfig, mapping(*overrides))


def synthetic(**changes: Any) -> dict[str, Any]:
    """A few samples of a small teacher, as the mapping `data`."""
    usual = {
        "name": "synthetic",
        "num_train": 61,
        "num_test": 37,
        "num_features": 12,
        "num_outputs": 3,
        "task": "classification",
        "teacher_width": 4,
        "noise": 0.0,
        "seed": 0,
    }
    return {**usual, **changes}


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose.composed(arguments.parse(overrides, "dist-ml test", name))
