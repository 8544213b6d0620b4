"""Training on a mesh with an operator axis over MPI is training in one process: each rank computes
the lone run, too, and compares.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
from operator_world import SHALLOW, on_mesh
from pipeline_world import NUM_STEPS, Trained, assert_same, settings, train

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import TrainConfig
from dist_ml.operator_parallel.grid import Sides
from dist_ml.operator_parallel.layout import LAYOUTS, all_sides
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.run import train_run

pytestmark = pytest.mark.mpi(min_size=2)


@functools.cache
def alone(num_steps: int = NUM_STEPS) -> Trained:
    return train(Communicator(Loopback()), settings(model=SHALLOW), num_steps)


def compare(world: Communicator, config: TrainConfig, num_steps: int = NUM_STEPS) -> None:
    found = train(world, config, num_steps)
    first = world.broadcast_object(found, 0)
    assert found[:4] == first[:4]
    assert_same([first], alone(num_steps))


def grid(layout: str, sides: Sides) -> tuple[int, ...]:
    return tuple(getattr(sides, side) for side in LAYOUTS[layout].sides)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_grid_trains_as_one_process(world: Communicator, layout: str) -> None:
    for sides in all_sides(layout, world.size):
        config = on_mesh(
            settings(model=SHALLOW), 1, 1, world.size, layout=layout, grid=grid(layout, sides)
        )
        compare(world, config)


@pytest.mark.parametrize("schedule", ["one_f_one_b", "zb_v"])
@pytest.mark.parametrize("changes", [{}, {"data_parallel": {"name": "zero2"}}])
def test_all_meshes_of_three_axes(
    world: Communicator, schedule: str, changes: dict[str, Any]
) -> None:
    for operator in range(2, world.size + 1):
        for pipeline in range(1, world.size + 1):
            if world.size % (operator * pipeline):
                continue
            data = world.size // (operator * pipeline)
            choices = {"schedule": schedule} if pipeline > 1 else {}
            config = on_mesh(
                settings(model=SHALLOW, **changes), data, pipeline, operator, **choices
            )
            compare(world, config)


def test_gradients_may_be_exchanged_while_layers_communicate(world: Communicator) -> None:
    if world.size % 2:
        pytest.skip("data x operator needs an even number of ranks")
    exchange = {"name": "ring", "overlap": "thread", "bucket_bytes": 512}
    config = settings(model=SHALLOW, allreduce=exchange)
    compare(world, on_mesh(config, world.size // 2, 1, 2))


def test_a_run_can_be_evaluated_on_other_meshes(world: Communicator, tmp_path: Path) -> None:
    path = world.broadcast_object(str(tmp_path / "run"))
    config = on_mesh(settings(model=SHALLOW), 1, 1, world.size, layout="2d")
    summary = train_run(dataclasses.replace(config, folder=path), world)
    assert (summary["status"], summary["ranks"]) == ("finished", world.size)
    planned, counted = summary["planned_words_by_axis"], summary["words_by_axis"]
    assert counted["operator"] == pytest.approx(planned["operator"])
    for comm in (world, Communicator(Loopback())):
        values = evaluate_run(path, comm)
        assert values["test_accuracy"] == summary["test_accuracy"]
        assert values["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-10)
    world.barrier()
