"""Training on P ranks is training on one: each rank computes the lone run too, and compares."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DataError, MeshError, NonFiniteError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.run import train_run
from dist_ml.train.trainer import Trainer
from tests.configurations import mapping, synthetic

pytestmark = pytest.mark.mpi

OVERRIDES = [
    "name=test",
    "seed=3",
    "epochs=3",
    "batch_size=16",
    "precision=fp64",
    "log_every=1",
    "model.hidden=[10,7]",
    "model.activation=tanh",
    "model.dropout=0.3",
    "optimizer.weight_decay=1e-3",
    "lr_schedule.warmup_fraction=0.2",
    "lr_schedule.final_fraction=0.1",
]
BASE: dict[str, Any] = {**mapping(*OVERRIDES), "data": synthetic()}


def config(**changes: Any) -> TrainConfig:
    return from_mapping(TrainConfig, {**BASE, **changes})


def trainer_on(comm: Communicator, settings: TrainConfig) -> Trainer:
    return build_trainer(settings, build_mesh(settings, comm))


def losses(trainer: Trainer, epochs: int) -> list[float]:
    return [step.loss for epoch in range(epochs) for step in trainer.epoch(epoch)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 3},
        {"batch_size": 3, "epochs": 1},  # fewer samples than ranks: some ranks have none
        {"clip_norm": 0.05, "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01}},
        {"comm": {"checked": True, "timing": True}},
        {"data": synthetic(task="regression", noise=0.1), "accumulation": 2},
    ],
    ids=["plain", "accumulation", "empty shares", "clipping and adamw", "checked", "regression"],
)
def test_losses_do_not_depend_on_the_number_of_ranks(
    world: Communicator, changes: dict[str, Any]
) -> None:
    settings = config(**changes)
    ours, alone = trainer_on(world, settings), trainer_on(Communicator(Loopback()), settings)
    assert losses(ours, settings.epochs) == pytest.approx(losses(alone, settings.epochs), rel=1e-11)
    here, there = (
        trainer.evaluate(trainer.dataset.test, batch_size=5) for trainer in (ours, alone)
    )
    assert (here.num_samples, here.accuracy) == (37, there.accuracy)
    assert here.loss == pytest.approx(there.loss, rel=1e-11)
    for mine, lone in zip(ours.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(mine, lone, rtol=1e-10, atol=1e-12)


def test_bfloat16_products_train_close_to_float32(world: Communicator) -> None:
    settings = config(precision="bf16", model={**BASE["model"], "dropout": 0.0})
    half, full = (
        losses(trainer_on(world, dataclasses.replace(settings, precision=p)), 2)
        for p in ("bf16", "fp32")
    )  # type: ignore[arg-type]
    assert half == pytest.approx(full, rel=0.05)
    assert half != full


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_one_ranks_bad_sample_stops_or_is_skipped_by_all(
    world: Communicator, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    trainer = trainer_on(world, config(nonfinite=rule))
    split = trainer.dataset.train
    batch = split.batch
    monkeypatch.setattr(type(split), "batch", lambda _, ids: _poisoned(batch, ids))
    step = next(
        index
        for index in range(trainer.sampler.steps_per_epoch)
        if 5 in trainer.sampler.batch(0, index)
    )
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    if rule == "stop":
        with pytest.raises(NonFiniteError, match="nonfinite=skip") as caught:
            trainer.step(0, step)
        assert caught.value.agreed
    else:
        assert trainer.step(0, step).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def _poisoned(batch: Any, ids: np.ndarray) -> Any:
    found = batch(ids)
    found.inputs[ids == 5] = math.nan
    return found


def test_a_run_leaves_a_folder_that_any_number_of_ranks_and_plain_torch_can_use(
    world: Communicator, tmp_path: Path
) -> None:
    path = world.broadcast_object(str(tmp_path / "run"))
    summary = train_run(config(folder=path, precision="fp32"), world)
    assert (summary["status"], summary["ranks"], summary["num_steps"]) == (
        "finished",
        world.size,
        12,
    )
    assert (summary["words_sent"] > 0) == (world.size > 1)
    for comm in (world, Communicator(Loopback())):
        values = evaluate_run(path, comm)
        assert values["test_accuracy"] == summary["test_accuracy"]
        assert values["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    weights = safetensors.torch.load_file(Path(path) / "checkpoints" / "model.safetensors")
    plain = torch.nn.Sequential(
        torch.nn.Linear(12, 10),
        torch.nn.Tanh(),
        torch.nn.Linear(10, 7),
        torch.nn.Tanh(),
        torch.nn.Linear(7, 3),
    )
    plain.load_state_dict(
        {
            f"{2 * int(name.split('.')[1])}.{name.split('.')[2]}": value
            for name, value in weights.items()
        }
    )
    logs = sorted(file.name for file in (Path(path) / "log").glob("rank-*.log"))
    assert logs == [f"rank-{rank:04}.log" for rank in range(world.size)]
    world.barrier()


def test_mistakes_are_raised_by_all_ranks(world: Communicator, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        trainer_on(world, config(data={"name": "arrays", "path": str(tmp_path / "nowhere")}))
    assert caught.value.agreed
    with pytest.raises(ConfigError, match=f"ranks=9, but {world.size} rank") as caught_ranks:
        trainer_on(world, config(ranks=9))
    assert caught_ranks.value.agreed
    with pytest.raises(MeshError, match="were started") as caught_mesh:
        trainer_on(world, config(mesh={"data": 5, "pipeline": 1, "operator": 1}))
    assert caught_mesh.value.agreed
    regression = config(
        data=synthetic(task="regression"), model={**BASE["model"], "loss": "cross_entropy"}
    )
    with pytest.raises(ConfigError, match="cross_entropy needs classes") as caught_config:
        trainer_on(world, regression)
    assert caught_config.value.agreed


def test_timing_enters_the_seconds_of_collectives(world: Communicator) -> None:
    seconds = []
    for timing in (True, False):
        trainer = trainer_on(world, config(comm={"checked": False, "timing": timing}))
        before = trainer.mesh.world.traffic.total().seconds
        losses(trainer, 1)
        seconds.append(trainer.mesh.world.traffic.total().seconds - before)
    assert (seconds[0] > 0) == (world.size > 1)  # alone, nothing moves
    assert seconds[1] == 0
