"""`dist-ml bench validation_loss`: does our Transformer learn what the same model in plain PyTorch
does? The loss on the text's held-out end after as many steps from the same weights on the same
windows, on one rank and on meshes of several.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, require_meshes, to_arguments
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.transformer import PLAIN, TransformerRun, plain_loop, training
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import MeshConfig
from dist_ml.datasets.dataset import Split
from dist_ml.train.build import build_mesh, build_trainer

_ONE_RANK = (1, 1, 1)


@dataclass(frozen=True)
class ValidationLossBench(TransformerRun):
    """What to train."""

    num_test: int  # windows that the loss is taken on
    steps: int  # before it is
    meshes: tuple[tuple[int, ...], ...]  # data, pipeline, operator, beside one rank
    mpi: str

    def __post_init__(self) -> None:
        require_meshes(self.meshes)


def run(config: ValidationLossBench, worlds: Worlds) -> Result:
    train = training(config)
    data = dataclasses.replace(train.data, num_test=config.num_test)
    train = dataclasses.replace(train, data=data)

    def trained(mesh: tuple[int, ...], plain: bool) -> dict[str, float]:
        on_mesh = dataclasses.replace(train, mesh=MeshConfig(*mesh))
        arguments = {"train": to_arguments(on_mesh), "steps": config.steps, "plain": plain}
        found: dict[str, float] = worlds.measure(
            "validation loss", arguments, ranks=prod(mesh), mpi=config.mpi
        )
        return found

    found = {PLAIN: trained(_ONE_RANK, plain=True)}
    for mesh in (_ONE_RANK, *config.meshes):
        found[f"ours on {' x '.join(map(str, mesh))} ranks"] = trained(mesh, plain=False)
    rows: list[Record] = [
        {"trained by": name, "steps": config.steps, **losses} for name, losses in found.items()
    ]
    expected = found.pop(PLAIN)["test loss"]
    checks = [
        Check(
            f"test loss unlike plain torch's, {name}",
            abs(losses["test loss"] / expected - 1),
            0.01,
            "lower",
        )
        for name, losses in found.items()
    ]
    return Result("validation_loss", rows, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, float]:
    """The loss before the last step, of its batch, and the mean over the test windows after it: of
    our trainer, or, with `plain`, of the plain loop, which takes its weights and batches from it.
    """
    config, steps = from_arguments(arguments["train"]), arguments["steps"]
    trainer = build_trainer(config, build_mesh(config, comm))
    places = [divmod(number, trainer.sampler.steps_per_epoch) for number in range(steps)]
    if arguments["plain"]:
        loop = plain_loop(config, trainer)
        batches = (torch.from_numpy(trainer.sampler.batch(*place)) for place in places)
        losses = [loop.step_on(batch) for batch in batches]
        tested = plain_test_loss(loop.model, trainer.dataset.test, config.batch_size)
    else:
        losses = [trainer.step(*place).loss for place in places]
        tested = trainer.evaluate(trainer.dataset.test, config.batch_size).loss
    trainer.close()
    return {"train loss": losses[-1], "test loss": tested}


def plain_test_loss(model: nn.Module, split: Split, batch_size: int) -> float:
    """The plain model's mean over all tokens of a split."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, split.num_samples, batch_size):
            ids = np.arange(start, min(start + batch_size, split.num_samples))
            inputs, targets, *_ = split.batch(ids)
            outputs = model(inputs).flatten(0, -2)
            total += cross_entropy(outputs, targets.flatten(), reduction="sum").item()
            count += targets.numel()
    return total / count


BENCH = Bench(
    "test loss of a Transformer after some steps against plain PyTorch's",
    ValidationLossBench,
    run,
    {"validation loss": measure},
    ranks=1,
)
