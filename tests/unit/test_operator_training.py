"""Training on a mesh of data x pipeline x operator is training in one process: every layout, and
what goes with it.
"""

import functools
import math
from typing import Any

import pytest
import torch
from operator_world import SHALLOW, on_mesh
from pipeline_world import Trained, assert_same, settings, train
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig, TrainConfig
from dist_ml.train.model_reducer import replicated_names
from dist_ml.train.trainer import Trainer

# layout, ranks of the operator axis, sides of the grid, ranks of the data axis
LAYOUTS: list[tuple[str, int, tuple[int, ...], int]] = [
    ("1d", 2, (), 2),
    ("1d", 3, (), 1),
    ("1d", 8, (), 1),
    ("1d_sharded", 2, (), 1),
    ("1d_sharded", 3, (), 2),
    ("2d", 4, (), 1),
    ("2d", 6, (3, 2), 1),
    ("2d", 2, (2, 1), 2),
    ("2.5d", 8, (), 1),
    ("2.5d", 2, (2, 1, 1), 2),
    ("2.5d", 6, (3, 1, 2), 1),
    ("3d", 8, (), 1),
    ("3d", 6, (1, 2, 3), 1),
    ("3d", 4, (2, 1, 2), 2),
]


def alone(num_steps: int = 4, **changes: Any) -> Trained:
    return train(Communicator(Loopback()), settings(**{"model": SHALLOW, **changes}), num_steps)


@functools.cache
def plain_alone(num_steps: int) -> Trained:
    return alone(num_steps)


def shared(config: TrainConfig, num_steps: int = 4) -> list[Trained]:
    mesh = config.mesh
    num_ranks = (mesh.data or 1) * (mesh.pipeline or 1) * (mesh.operator or 1)
    return run_ranks(num_ranks, lambda comm: train(comm, config, num_steps))


@pytest.mark.parametrize(("layout", "operator", "grid", "data"), LAYOUTS)
def test_every_layout_trains_as_one_process(
    layout: str, operator: int, grid: tuple[int, ...], data: int
) -> None:
    """In fp64; uneven widths, fewer features than ranks, batches that don't divide, dropout."""
    config = on_mesh(settings(model=SHALLOW), data, 1, operator, layout=layout, grid=grid)
    assert_same(shared(config, 3), plain_alone(3))


def test_one_layer_may_have_another_layout() -> None:
    chosen = {"layout": "1d", "layers": {"layers.1": "1d_sharded", "layers.3": "whole"}}
    assert_same(shared(on_mesh(settings(model=SHALLOW), 1, 1, 3, **chosen)), plain_alone(4))


VARIANTS: dict[str, dict[str, Any]] = {
    "clipped adamw": {
        "clip_norm": 0.1,
        "optimizer": OptimizerConfig("adamw", lr=0.01, weight_decay=0.0),
    },
    "regression": {"data": {"task": "regression"}},
    "one sample": {"batch_size": 1, "clip_norm": 0.05},
    "accumulation": {"accumulation": 3, "clip_norm": 0.1},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("layout", "grid"), [("1d", (3,)), ("2.5d", (2, 1, 2)), ("3d", (1, 2, 2))])
def test_what_the_ranks_must_agree_on(layout: str, grid: tuple[int, ...], variant: str) -> None:
    changes = VARIANTS[variant]
    sides = {"grid": grid} if len(grid) > 1 else {}
    config = on_mesh(
        settings(model=SHALLOW, **changes), 1, 1, math.prod(grid), layout=layout, **sides
    )
    assert_same(shared(config, 3), alone(3, **changes))


EXCHANGES: dict[str, dict[str, Any]] = {
    "zero1": {"data_parallel": {"name": "zero1"}, "clip_norm": 0.1},
    "zero2": {
        "data_parallel": {"name": "zero2"},
        "allreduce": {"bucket_bytes": 512},
        "clip_norm": 0.1,
    },
    "ring thread": {"allreduce": {"name": "ring", "overlap": "thread", "bucket_bytes": 512}},
    "sparse": {
        "sparse": {"allreduce": "oktopk", "density": 1.0, "dense_below": 0},
        "clip_norm": 0.1,
    },
}


@pytest.mark.parametrize("exchange", list(EXCHANGES))
@pytest.mark.parametrize(("layout", "grid"), [("1d", ()), ("3d", (2, 1, 1))])
def test_every_exchange_of_the_data_axis(layout: str, grid: tuple[int, ...], exchange: str) -> None:
    changes = EXCHANGES[exchange]
    config = on_mesh(settings(model=SHALLOW, **changes), 2, 1, 2, layout=layout, grid=grid)
    assert_same(shared(config, 3), alone(3, clip_norm=changes.get("clip_norm")))


GUARDED: dict[str, Any] = {"clip_norm": 0.1, "nonfinite": "skip"}


@pytest.mark.parametrize(
    ("data", "pipeline", "operator", "schedule", "changes"),
    [
        (2, 2, 2, "one_f_one_b", {}),
        (1, 2, 3, "zb_h1", GUARDED),
        (1, 2, 2, "chimera", {}),
        (1, 2, 2, "chimera", GUARDED),
        (2, 2, 2, "zb_v", GUARDED),
    ],
)
def test_three_kinds_of_parallelism_train_as_one_process(
    data: int, pipeline: int, operator: int, schedule: str, changes: dict[str, Any]
) -> None:
    config = on_mesh(
        settings(model=SHALLOW, **changes), data, pipeline, operator, schedule=schedule
    )
    assert_same(shared(config, 3), alone(3, **changes))


@pytest.mark.parametrize(
    ("kernel", "layout", "grid"),
    [("torch", "1d", ()), ("numpy", "1d", ()), ("torch", "2d", (2, 1))],
)
def test_layers_that_write_their_gradients_themselves(
    kernel: str, layout: str, grid: tuple[int, ...]
) -> None:
    """Wide enough to have gradient sinks in their parts; gathered weights leave them unused."""
    model = ModelConfig(hidden=(8, 700, 600, 6), activation="relu", dropout=0.1)
    config = on_mesh(settings(model=model, kernel=kernel), 1, 1, 2, layout=layout, grid=grid)
    assert_same(shared(config), alone(model=model), 1e-9)


@pytest.mark.parametrize("layout", ["1d", "2.5d"])
def test_fp32_stays_close(layout: str) -> None:
    config = on_mesh(settings(model=SHALLOW, precision="fp32"), 1, 1, 2, layout=layout)
    assert_same(shared(config, 7), alone(7, precision="fp32"), 2e-5)


@pytest.mark.parametrize(
    ("layout", "operator", "grid"), [("1d", 2, ()), ("2d", 4, ()), ("3d", 4, (2, 1, 2))]
)
def test_bf16_products_stay_close(layout: str, operator: int, grid: tuple[int, ...]) -> None:
    chosen = {"layout": layout, "grid": grid}
    config = on_mesh(settings(model=SHALLOW, precision="bf16"), 1, 1, operator, **chosen)
    found, expected = shared(config)[0].losses, alone(precision="fp32").losses
    assert found == pytest.approx(expected, rel=2e-2)
    assert found != pytest.approx(expected, rel=1e-5)


def test_a_sparse_exchange_keeps_replicas_alike() -> None:
    """What several operator ranks hold alike is summed densely: they would select differently."""
    sparse = {"allreduce": "oktopk", "density": 0.2, "dense_below": 0}
    config = on_mesh(settings(model=SHALLOW, sparse=sparse), 2, 1, 3)

    def replicas(comm: Communicator) -> dict[str, torch.Tensor]:
        trainers: list[Trainer] = []
        trained = train(comm, config, 6, trainers.append)
        assert trained.losses != plain_alone(6).losses
        (model,) = (trainer.model for trainer in trainers)
        parameters = dict(model.named_parameters())
        return {name: parameters[name].detach() for name in replicated_names(model, 3)}

    found = run_ranks(6, replicas)
    assert list(found[0]) == ["layers.1.bias", "layers.3.bias", "layers.5.bias"]
    for held in found:
        assert all(torch.equal(held[name], value) for name, value in found[0].items())
