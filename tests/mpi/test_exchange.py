"""Every way of exchanging gradients trains like the plain one."""

import math
from typing import Any

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.sharded_reducers import Zero2Reducer, optimizer_bytes
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer
from tests.configurations import mapping, synthetic

pytestmark = pytest.mark.mpi

BASE: dict[str, Any] = {
    **mapping(
        "epochs=2", "batch_size=16", "precision=fp64", "model.hidden=[10,7]", "clip_norm=0.5"
    ),
    "data": synthetic(),
}


def trainer(world: Communicator, changes: dict[str, Any]) -> Trainer:
    config = from_mapping(TrainConfig, {**BASE, **changes})
    return build_trainer(config, build_mesh(config, world))


def losses(trained: Trainer) -> list[float]:
    return [step.loss for epoch in range(2) for step in trained.epoch(epoch)]


EXCHANGES: dict[str, dict[str, Any]] = {
    **{
        name: {"allreduce": {"name": name}}
        for name in ("ring", "rabenseifner", "shared_memory", "hierarchical", "auto")
    },
    "thread": {"allreduce": {"name": "ring", "overlap": "thread", "bucket_bytes": 256}},
    "poll": {"allreduce": {"name": "hierarchical", "overlap": "poll", "bucket_bytes": 256}},
    "thread in shared memory": {
        "allreduce": {"name": "shared_memory", "overlap": "thread", "bucket_bytes": 256}
    },
    "accumulation": {
        "allreduce": {"name": "ring", "overlap": "thread", "bucket_bytes": 256},
        "accumulation": 2,
    },
    "zero1": {"data_parallel": {"name": "zero1"}},
    "zero2": {"data_parallel": {"name": "zero2"}, "allreduce": {"bucket_bytes": 256}},
    "zero2 accumulation": {"data_parallel": {"name": "zero2"}, "accumulation": 3},
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_losses_are_those_of_the_native_allreduce(world: Communicator, name: str) -> None:
    expected = losses(trainer(world, {}))
    assert losses(trainer(world, EXCHANGES[name])) == pytest.approx(expected, rel=1e-12)


def test_sharded_memory_is_one_part_in_p(world: Communicator) -> None:
    changes = {
        "data_parallel": {"name": "zero2"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    }
    trained = trainer(world, changes)
    expected = losses(trainer(world, {**changes, "data_parallel": {"name": "dense"}}))
    assert losses(trained) == pytest.approx(expected, rel=1e-9)
    reducer = trained.reducer
    assert isinstance(reducer, Zero2Reducer)
    words = sum(parameter.numel() for parameter in trained.model.parameters())
    assert abs(reducer.shard.numel() - words / world.size) < 1
    assert abs(optimizer_bytes(trained.updater.optimizer) - 2 * 8 * words / world.size) < 16
    assert all(parameter.grad is None for parameter in trained.model.parameters())


def parameters(trained: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in trained.model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "periodic", "period": 1},
        {"name": "daso", "warmup_steps": 100},
        {"name": "daso", "warmup_steps": 2, "cooldown_steps": 2, "period": 2, "plateau_steps": 1},
        {"name": "periodic", "period": 2},
    ],
)
def test_local_steps_learn_and_agree_at_the_end(
    world: Communicator, settings: dict[str, Any]
) -> None:
    plain = {
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0},
        "clip_norm": None,
    }
    dense, local = trainer(world, plain), trainer(world, {**plain, "data_parallel": settings})
    expected, found = losses(dense), losses(local)
    assert found[-1] < found[0]
    assert all(math.isfinite(loss) for loss in found)
    mine = parameters(local)
    everywhere = world.allgather_objects(mine.numpy().tobytes())
    assert all(bits == everywhere[0] for bits in everywhere)
    if settings["period" if settings["name"] == "periodic" else "warmup_steps"] in (1, 100):
        assert found == pytest.approx(
            expected, rel=1e-6
        )  # averaging after every plain SGD step is averaging gradients
        torch.testing.assert_close(mine, parameters(dense), rtol=1e-6, atol=1e-8)
