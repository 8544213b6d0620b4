"""Training runs that benchmarks make out of a composed training configuration."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.train import TrainConfig
from dist_ml.counter_random import stream, uniform
from dist_ml.errors import ConfigError


def with_widths(train: TrainConfig, widths: Sequence[int], batch_size: int) -> TrainConfig:
    """`train` with an MLP of exactly these widths on synthetic classes, without dropout."""
    data = DataConfig(
        name="synthetic",
        num_train=1 << 20,
        num_test=1,
        num_features=widths[0],
        num_outputs=widths[-1],
        task="classification",
        teacher_width=1,
        noise=0.0,
        seed=0,
    )
    model = dataclasses.replace(train.model, hidden=tuple(widths[1:-1]), dropout=0.0)
    return dataclasses.replace(train, data=data, model=model, batch_size=batch_size)


def on_arrays(train: TrainConfig, num_samples: int, folder: str) -> TrainConfig:
    """`train` on `num_samples` samples of the same shape, but from memory-mapped files in `folder`,
    as users have them.
    """
    features, classes = train.data.num_features, train.data.num_outputs
    assert features is not None
    assert classes is not None
    path = Path(folder)
    x = (
        uniform(stream("bench samples"), np.arange(num_samples * features))
        .astype(np.float32)
        .reshape(num_samples, features)
    )
    y = np.arange(num_samples) % classes
    np.save(path / "train_x.npy", x)
    np.save(path / "train_y.npy", y)
    np.save(path / "test_x.npy", x[:classes])
    np.save(path / "test_y.npy", y[:classes])
    return dataclasses.replace(
        train, data=DataConfig(name="arrays", path=str(path), num_outputs=classes)
    )


def require_meshes(meshes: Sequence[Sequence[int]]) -> None:
    """`ConfigError` unless each is the sizes of the three axes."""
    for mesh in meshes:
        if len(mesh) != 3 or min(mesh) < 1:
            raise ConfigError(
                f"meshes has {list(mesh)}; each is [data, pipeline, operator], 1 or more"
            )


def to_arguments(train: TrainConfig) -> dict[str, Any]:
    """The configuration as a part's arguments."""
    return to_mapping(train)


def from_arguments(mapping: Mapping[str, Any]) -> TrainConfig:
    return from_mapping(TrainConfig, mapping)
