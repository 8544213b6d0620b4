"""Runs on MPI that one rank is told to stop: saved, and gone on with on this mesh and on others."""

import dataclasses
import itertools
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.datasets.dataset import Split
from dist_ml.errors import ConfigError
from dist_ml.train import logs, metrics, pipeline_evaluator
from dist_ml.train.evaluator import Evaluation
from dist_ml.train.run import train_run
from dist_ml.train.step import TrainStep
from dist_ml.train.stop_signals import StopSignals
from dist_ml.train.trainer import Trainer
from tests.unit.train_worlds import changed

pytestmark = pytest.mark.mpi

SPARSE = {"allreduce": "oktopk", "density": 0.2, "dense_below": 10, "momentum": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "oktopk": {"sparse": SPARSE, "optimizer": {"momentum": 0.0}},
    "zero2": {"data_parallel": {"name": "zero2"}, "optimizer": {"name": "adamw", "momentum": 0.0}},
    "periodic": {"data_parallel": {"name": "periodic", "period": 2}},
}


def config(folder: str, **changes: Any) -> TrainConfig:
    model = {"hidden": (7, 6, 9, 5, 8, 6, 7), "dropout": 0.1}
    checkpoint = CheckpointConfig(every=2, asynchronous=True)
    chosen = {"epochs": 3, "batch_size": 13, "model": model, "precision": "fp32", **changes}
    return changed(folder=folder, resume="auto", checkpoint=checkpoint, **chosen)


def train(world: Communicator, wanted: TrainConfig) -> list[float]:
    """The losses of all steps of the run so far."""
    with StopSignals() as signals:
        train_run(wanted, world, signals=signals)
    logs.stop()
    file = Path(wanted.folder) / "metrics.jsonl"
    lines = world.broadcast_object(metrics.read(file) if world.rank == 0 else [])
    return [line["loss"] for line in lines if "loss" in line]


def told_to_stop(monkeypatch: pytest.MonkeyPatch, rank: int, at: int) -> None:
    """The last rank gets a signal before its step number `at`."""
    step = TrainStep.run

    def run(self: TrainStep, *batch: Any) -> Any:
        if self.num_steps == at and rank == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *batch)

    monkeypatch.setattr(TrainStep, "run", run)


def on(wanted: TrainConfig, data: int, pipeline: int, operator: int) -> TrainConfig:
    return dataclasses.replace(wanted, mesh=MeshConfig(data, pipeline, operator))


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_told_and_all_go_on_to_the_last_bit(
    kind: str, world: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.broadcast_object(str(tmp_path))
    expected = train(world, config(f"{place}/whole", **KINDS[kind]))
    stopped = config(f"{place}/stopped", **KINDS[kind])
    with monkeypatch.context() as signalled:
        told_to_stop(signalled, world.size - 1 - world.rank, at=3)
        first = train(world, stopped)
    assert first == expected[:4]
    assert train(world, stopped) == expected
    world.barrier()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["pipedream_2bw", "zb_h2"])
def test_the_first_stage_is_told_while_a_step_has_begun(
    name: str, world: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stop after the same step, and go on as if nothing had been."""
    place = world.broadcast_object(str(tmp_path))
    choices = {"pipeline": {"name": name}, "mesh": MeshConfig(1, world.size, 1)}
    expected = train(world, config(f"{place}/whole", evaluate_every=3, **choices))
    stopped = config(f"{place}/stopped", evaluate_every=3, **choices)
    with monkeypatch.context() as signalled:
        told_to_stop(signalled, world.rank, at=3)
        first = train(world, stopped)
    assert first == expected[: 4 + (world.size - 1 if name == "pipedream_2bw" else 0)]
    assert train(world, stopped) == expected
    world.barrier()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("names", [("pipedream_2bw", "zb_h1"), ("zb_h1", "pipedream_2bw")])
def test_another_algorithm_of_a_pipeline_is_refused_unless_forced(
    names: tuple[str, str], world: Communicator, tmp_path: Path
) -> None:
    """Of a finished run and of one to go on with; forced, its steps differ from those before."""
    place, before, now = world.broadcast_object(str(tmp_path)), *names
    mesh = MeshConfig(1, world.size, 1)
    losses = train(world, config(f"{place}/run", pipeline={"name": before}, mesh=mesh))
    other = config(f"{place}/run", pipeline={"name": now}, mesh=mesh)
    with pytest.raises(ConfigError, match=rf"pipeline\.name: {before} -> {now}") as caught:
        train(world, other)
    assert caught.value.agreed
    found = train(world, dataclasses.replace(other, resume_force=True))
    assert found[:8] == losses[:8]  # the last checkpoint is of step 8
    assert all(map(math.isfinite, found))
    assert len(found) == 9
    same = config(f"{place}/run", pipeline={"name": now, "microbatches": 2 * world.size}, mesh=mesh)
    assert train(world, dataclasses.replace(same, resume=f"{place}/run")) == found
    world.barrier()


def test_what_a_data_axis_saved_goes_on_along_the_others(
    world: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.broadcast_object(str(tmp_path))
    expected = train(world, config(f"{place}/whole", **KINDS["zero2"]))
    for name, sizes in {"a": (1, world.size, 1), "b": (1, 1, world.size)}.items():
        stopped = config(f"{place}/{name}", **KINDS["zero2"])
        with monkeypatch.context() as signalled:
            told_to_stop(signalled, world.size - 1 - world.rank, at=3)
            train(world, stopped)
        found = train(world, on(stopped, *sizes))
        assert found == pytest.approx(expected, rel=2e-5)
    world.barrier()


def test_other_settings_are_refused_by_all_ranks(world: Communicator, tmp_path: Path) -> None:
    place = world.broadcast_object(str(tmp_path))
    train(world, config(f"{place}/run", epochs=1))
    with pytest.raises(ConfigError, match="seed: 3 -> 4") as caught:
        train(world, config(f"{place}/run", epochs=1, seed=4))
    assert caught.value.agreed
    world.barrier()


def told_in_evaluation(monkeypatch: pytest.MonkeyPatch, is_told: bool) -> None:
    """Evaluations are made sample by sample; in that after step 6 a signal may come."""
    evaluate = Trainer.evaluate

    def evaluated(self: Trainer, split: Split, *, at_border: Callable[[], None]) -> Evaluation:
        borders = itertools.count()

        def border() -> None:
            at_border()
            if is_told and self.num_steps == 6 and next(borders) == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

        return evaluate(self, split, 1, border)

    monkeypatch.setattr(pipeline_evaluator, "_PIECES_AT_ONCE", 2)
    monkeypatch.setattr(Trainer, "evaluate", evaluated)


def evaluations(world: Communicator, folder: str) -> list[dict[str, Any]]:
    lines = metrics.read(Path(folder) / "metrics.jsonl") if world.rank == 0 else []
    return world.broadcast_object([line for line in lines if "test_loss" in line])  # type: ignore[no-any-return]


@pytest.mark.parametrize("axis", ["data", "pipeline"])
def test_one_rank_is_told_in_an_evaluation_and_all_stop_before_its_end(
    axis: str, world: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that goes on makes that evaluation again, and comes to the same."""
    place = world.broadcast_object(str(tmp_path))
    sizes = (world.size, 1, 1) if axis == "data" else (1, world.size, 1)
    whole, stopped = (on(config(f"{place}/{name}"), *sizes) for name in ("whole", "stopped"))
    with monkeypatch.context() as undisturbed:
        told_in_evaluation(undisturbed, False)
        expected = train(world, whole)
    with monkeypatch.context() as signalled:
        told_in_evaluation(signalled, world.rank == world.size - 1)
        assert train(world, stopped) == expected[:6]
    assert [line["epoch"] for line in evaluations(world, stopped.folder)] == [1]
    with monkeypatch.context() as undisturbed:
        told_in_evaluation(undisturbed, False)
        assert train(world, stopped) == expected
    assert evaluations(world, stopped.folder) == evaluations(world, whole.folder)
    world.barrier()
