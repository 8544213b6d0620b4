"""The trainer on a model and samples that a program hands in, against a loop of torch's own."""

import copy
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import dist_ml
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.names import OWN
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, OptimizerConfig, TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.errors import ConfigError, DataError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.own import Own
from tests.thread_world import run_ranks
from tests.unit.train_worlds import changed

INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS.sum(1) > 0).long()
SAMPLES = TensorDataset(INPUTS[:30], TARGETS[:30]), TensorDataset(INPUTS[30:], TARGETS[30:])
CONFIG = changed(
    model=ModelConfig(OWN), data=DataConfig(OWN), lr_schedule={"warmup_fraction": 0.0},
    optimizer=OptimizerConfig("sgd", lr=0.1, weight_decay=0.0), epochs=2, batch_size=10,
)  # fmt: skip


def blocks(dropout: float = 0.0, normed: bool = False) -> list[tuple[str, nn.Module]]:
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(7) if normed else nn.Identity()
    middle = nn.Sequential(norm, nn.Tanh(), nn.Dropout(dropout))
    return [("first", nn.Linear(5, 7)), ("middle", middle), ("head", nn.Linear(7, 2))]


def module(**choices: Any) -> nn.Module:
    return nn.Sequential(*[block for _, block in blocks(**choices)])


def train(config: TrainConfig, own: Own, size: int) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of the steps, and the whole model's tensors in the end."""

    def on_rank(comm: Any) -> Any:
        mine = copy.deepcopy(own)
        trainer = build_trainer(config, build_mesh(config, comm), own=mine)
        losses = [step.loss for step in trainer.next_steps(6)]
        trainer.evaluate(trainer.dataset.test)
        weights = trainer.weights() or {}
        kept = {name: each.clone() for name, each in weights.items()}
        trainer.close()
        return losses, kept

    losses, weights = run_ranks(size, on_rank)[0]
    return losses, list(weights.values())


def by_torch(loss_of: Any = None) -> tuple[list[float], list[torch.Tensor]]:
    model, sampler, losses = module().double(), GlobalSampler(30, 10, CONFIG.seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for number in range(6):
        ids = torch.from_numpy(sampler.batch(*divmod(number, 3)))
        loss = (loss_of or nn.functional.cross_entropy)(model(INPUTS[ids].double()), TARGETS[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, list(model.state_dict().values())


def assert_same(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], theirs[1])


@pytest.mark.parametrize(("size", "pipeline"), [(1, 1), (3, 1), (2, 2), (4, 2)])
def test_blocks_train_as_torch_trains_them_on_any_mesh(size: int, pipeline: int) -> None:
    mesh = MeshConfig(None, pipeline, 1)
    chosen = PipelineConfig() if pipeline == 1 else PipelineConfig(microbatches=2)
    config = dataclasses.replace(CONFIG, mesh=mesh, pipeline=chosen)
    assert_same(train(config, Own(blocks(), SAMPLES), size), by_torch())


def test_a_module_a_subset_and_a_loss_of_its_own() -> None:
    def label_smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.2, reduction="sum")

    whole = TensorDataset(INPUTS, TARGETS)
    samples = Subset(whole, range(30)), Subset(whole, range(30, 40))
    mine = train(CONFIG, Own(module(), samples, label_smoothed), 2)
    assert_same(mine, by_torch(lambda a, b: label_smoothed(a, b) / 10))


def test_buffers_are_the_same_on_all_replicas_and_frozen_parameters_stay() -> None:
    first = module(normed=True)
    first[2].weight.requires_grad_(False)

    def on_rank(comm: Any) -> dict[str, torch.Tensor]:
        own = Own(copy.deepcopy(first), SAMPLES)
        trainer = build_trainer(CONFIG, build_mesh(CONFIG, comm), own=own)
        list(trainer.next_steps(3))
        trainer.close()
        return trainer.model.state_dict()

    zero, one = run_ranks(2, on_rank)
    torch.testing.assert_close(zero, one, rtol=0, atol=0)
    assert list(zero) == list(first.state_dict())
    assert zero["1.0.running_mean"].any()
    torch.testing.assert_close(zero["2.weight"], first[2].weight.double(), rtol=0, atol=0)


def test_a_run_that_goes_on_comes_to_what_one_run_comes_to(tmp_path: Path) -> None:
    """Buffers are saved, and dropout draws what it would have drawn."""

    def fit(folder: str, epochs: int) -> dict[str, Any]:
        settings = [
            "checkpoint.every=3",
            "lr_schedule=constant",
            "resume=auto",
            "resume_force=true",
        ]
        own = {"model": module(dropout=0.5, normed=True), "dataset": SAMPLES}
        torch.manual_seed(epochs)  # what the program draws itself is no part of it
        overrides = [*settings, f"folder={tmp_path / folder}", f"epochs={epochs}", "batch_size=10"]
        return dist_ml.fit(**own, overrides=overrides)

    whole, begun, resumed = fit("a", 4), fit("b", 2), fit("b", 4)
    assert (begun["num_steps"], resumed["num_steps"]) == (6, 12)
    assert resumed["test_loss"] == whole["test_loss"]
    assert resumed["train_loss"] == whole["train_loss"]


GOOD = [(torch.zeros(5), 0), (torch.ones(5), 1)]


@pytest.mark.parametrize(
    ("own", "changes", "words"),
    [
        (Own(module(), SAMPLES), {"mesh": MeshConfig(1, 2, 1)}, "needs blocks to cut between"),
        (Own(blocks(), SAMPLES), {"mesh": MeshConfig(1, 1, 2)}, "use mesh.operator=1"),
        (Own(module(), SAMPLES), {"kernel": "auto"}, "kernel=auto has no effect on the layers"),
        (Own(module()), {}, "data=own is what a program of your own hands in"),
        (Own(None, SAMPLES), {}, "model=own is what a program of your own hands in"),
        (Own(module(), SAMPLES), {"model": ModelConfig("mlp")}, "model=mlp has no effect beside"),
        (Own(module(), SAMPLES), {"data": DataConfig(OWN, num_train=3)}, "data.* has no effect"),
        (
            Own(module(), SAMPLES, nn.functional.mse_loss),
            {"model": ModelConfig(OWN, loss="mse")},
            "model.loss=mse has no effect beside the loss",
        ),
        (Own(nn.Tanh(), SAMPLES), {}, "has no parameter that is trained"),
        (Own("mlp", SAMPLES), {}, "model is a str; hand in a torch.nn.Module"),  # type: ignore[arg-type]
        (Own([nn.Linear(5, 2)], SAMPLES), {}, "each block is a pair (name, module)"),  # type: ignore[list-item]
        (Own([("a.b", nn.Linear(5, 2))], SAMPLES), {}, "names without dots"),
        (Own([("a", nn.Linear(5, 2))] * 2, SAMPLES), {}, "two blocks are named 'a'"),
        (Own(module(), SAMPLES[0]), {}, "must be (training samples, test samples)"),
        (Own(module(), (iter(GOOD), GOOD)), {}, "of which no sample can be asked for by number"),
        (Own(module(), (GOOD, [])), {}, "there are no test samples"),
        (Own(module(), (GOOD, [torch.zeros(5)])), {}, "must be a pair (input, target)"),
        (Own(module(), (GOOD, [({"x": 1}, 0)])), {}, "hold a dict; a sample must be a pair"),
        (Own(module(), (GOOD, [(torch.zeros(4), 0)])), {}, "of shape [5], test samples of [4]"),
        (
            Own(module(), ([(torch.zeros(5), torch.zeros(2, dtype=torch.int64))],) * 2),
            {},
            "which no loss here is for; hand in one: loss=callable",
        ),
    ],
)
def test_what_does_not_fit_is_told_on_all_ranks(
    own: Own, changes: dict[str, Any], words: str
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    size = 2 if "mesh" in changes else 1

    def on_rank(comm: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            build_trainer(config, build_mesh(config, comm), own=own)
        return str(caught.value)

    assert all(words in told for told in run_ranks(size, on_rank))


def test_samples_of_several_shapes_are_named() -> None:
    ragged = [(torch.zeros(5), 0), (torch.zeros(4), 1)] * 5
    trainer = build_trainer(
        CONFIG, build_mesh(CONFIG, Communicator(Loopback())), own=Own(module(), [ragged] * 2)
    )
    with pytest.raises(DataError, match="of the training samples can't be joined"):
        trainer.step(0, 0)


def test_a_run_that_is_stopped_is_saved_and_ends_the_script(tmp_path: Path) -> None:
    def ask_to_stop(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return nn.functional.cross_entropy(outputs, targets, reduction="sum")

    overrides = ["resume=auto", f"folder={tmp_path / 'run'}", "batch_size=10"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        dist_ml.fit(module(), SAMPLES, loss=ask_to_stop, overrides=overrides)
    assert stopped.value.code == 75
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/COMMIT"))
    assert signal.getsignal(signal.SIGTERM) is before
