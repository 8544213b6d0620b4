"""A Transformer and a CNN on a mesh of data x pipeline x operator train as one process does: in
fp64, with dropout, on batches that don't divide; heads, classes, vocabulary and channels uneven.
"""

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from operator_world import on_mesh
from pipeline_world import Trained, assert_same, settings, train
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig, TrainConfig
from dist_ml.train.axis_words import planned_words
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.interval import Interval

NUM_STEPS = 2
DIGITS = DataConfig("digits", num_train=30, num_test=17, test_every=5)
TEXT = DataConfig("text", num_tokens=9, test_fraction=0.1, num_train=30, num_test=17)
SIZES: dict[str, Any] = {"width": 12, "depth": 2, "heads": 3, "activation": "gelu", "dropout": 0.2}
MODELS: dict[str, tuple[ModelConfig, DataConfig]] = {
    "decoder": (ModelConfig("transformer", **SIZES), TEXT),
    "tied decoder": (ModelConfig("transformer", **SIZES, positions="learned", tied=True), TEXT),
    "encoder": (ModelConfig("transformer", **SIZES, positions="learned"), DIGITS),
    "cnn": (ModelConfig("cnn", channels=(6, 9), groups=3, blocks_per_stage=1, dropout=0.2), DIGITS),
}
MESHES: list[tuple[str, tuple[int, int, int], dict[str, Any]]] = [
    ("decoder", (1, 1, 2), {}),
    ("decoder", (1, 1, 4), {}),
    ("decoder", (1, 1, 2), {"layout": "1d_sharded"}),
    ("decoder", (1, 1, 4), {"layout": "2d"}),
    ("decoder", (1, 1, 4), {"layout": "2.5d", "grid": (2, 1, 2)}),
    ("decoder", (1, 1, 4), {"layout": "3d", "grid": (1, 2, 2)}),
    ("decoder", (2, 2, 2), {"schedule": "one_f_one_b"}),
    ("tied decoder", (1, 1, 3), {}),
    ("tied decoder", (1, 1, 8), {"layout": "3d"}),
    ("tied decoder", (1, 2, 2), {"schedule": "zb_h1"}),
    ("encoder", (1, 1, 3), {"layout": "1d_sharded"}),
    ("encoder", (1, 1, 4), {"layout": "3d", "grid": (2, 1, 2)}),
    ("encoder", (2, 1, 2), {"layout": "2d"}),
    ("cnn", (1, 1, 2), {}),
    ("cnn", (2, 1, 4), {}),
    ("cnn", (1, 2, 3), {"schedule": "chimera"}),
    ("decoder", (1, 2, 2), {"schedule": "zb_v"}),  # parts of other sizes, but the same stages
]


def configured(name: str) -> TrainConfig:
    model, data = MODELS[name]
    optimizer = OptimizerConfig("adamw", lr=0.003, weight_decay=0.01)
    config = settings(model=model, optimizer=optimizer, clip_norm=0.5)
    return dataclasses.replace(config, data=data)


@functools.cache
def alone(name: str) -> Trained:
    return train(Communicator(Loopback()), configured(name), NUM_STEPS)


@pytest.mark.parametrize(("name", "mesh", "choices"), MESHES)
def test_a_mesh_trains_as_one_process(
    name: str, mesh: tuple[int, int, int], choices: dict[str, Any]
) -> None:
    config = on_mesh(configured(name), *mesh, **choices)
    data, pipeline, operator = mesh
    found = run_ranks(data * pipeline * operator, lambda comm: train(comm, config, NUM_STEPS))
    assert_same(found, alone(name), 1e-8)


@pytest.mark.parametrize(
    ("name", "mesh", "choices"),
    [
        *MESHES[:6],  # each layout of a decoder
        *(each for each in MESHES[6:] if each[0] != "decoder" and math.prod(each[1]) <= 3),
        ("tied decoder", (1, 2, 2), {"schedule": "zb_h1"}),
    ],
)
def test_what_is_planned_is_what_is_counted(
    name: str, mesh: tuple[int, int, int], choices: dict[str, Any]
) -> None:
    config = on_mesh(configured(name), *mesh, **choices)
    config = dataclasses.replace(config, clip_norm=None)  # steps begun again are counted again

    def words(comm: Communicator) -> None:
        trainer = build_trainer(config, build_mesh(config, comm))
        interval = Interval(trainer)
        steps = len(list(trainer.epoch(0)))
        planned, counted = planned_words(config, trainer), interval.words_by_axis()
        for axis in planned:
            assert planned[axis] == pytest.approx(counted[axis] / steps)

    run_ranks(mesh[1] * mesh[2], words)


def test_a_model_whose_classes_are_cut_gives_whole_outputs() -> None:
    config = on_mesh(configured("decoder"), 1, 1, 3)
    inputs = torch.arange(18).view(2, 9)

    def outputs(comm: Communicator, config: TrainConfig) -> torch.Tensor:
        return build_trainer(config, build_mesh(config, comm)).outputs(inputs)

    expected = outputs(Communicator(Loopback()), configured("decoder"))
    for found in run_ranks(3, lambda comm: outputs(comm, config)):
        torch.testing.assert_close(found, expected)
