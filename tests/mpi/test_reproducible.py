"""reproduce=bitwise on MPI: every mesh of these ranks has the bits of one rank alone."""

from typing import Any

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.train.axis_words import planned_words
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.interval import Interval
from dist_ml.train.trainer import Trainer
from tests.pipeline_world import Trained, on_mesh, settings, train

pytestmark = pytest.mark.mpi

CONFIG = settings(precision="fp32", clip_norm=0.2, reproduce=ReproduceConfig(12))


@pytest.fixture(scope="module")
def alone() -> Trained:
    return train(Communicator(Loopback()), on_mesh(CONFIG, 1, 1))


@pytest.mark.parametrize(
    "choices",
    [None, {}, {"name": "zb_h1", "validate": "after"}, {"name": "gpipe", "recompute": True}],
)
def test_every_mesh_has_the_same_bits(
    world: Communicator, alone: Trained, choices: dict[str, Any] | None
) -> None:
    stages = 1 if choices is None else 2 if world.size % 2 == 0 else world.size
    chosen = choices or {} if stages > 1 else {}
    found = train(world, on_mesh(CONFIG, world.size // stages, stages, **chosen))
    assert found[:-1] == alone[:-1]
    weights = world.broadcast_object(found.weights)
    assert alone.weights is not None
    for name, tensor in alone.weights.items():
        assert torch.equal(weights[name], tensor), name


def test_words_are_those_that_are_planned(world: Communicator) -> None:
    mesh = build_mesh(CONFIG, world)
    trainer = build_trainer(CONFIG, mesh)
    counted = words(trainer)
    planned = planned_words(CONFIG, trainer)
    assert planned.get("data", 0) == counted
    trainer.close()
    mesh.free()


def words(trainer: Trainer) -> float:
    """That a step sends along the data axis."""
    interval = Interval(trainer)
    for _ in trainer.epoch(0):
        pass
    return interval.words_by_axis().get("data", 0) / trainer.sampler.steps_per_epoch
