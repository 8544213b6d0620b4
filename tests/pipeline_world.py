"""Training on a mesh of data x pipeline, told so that it can be compared with one process."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dist_ml.bench.delayed_update import train_delayed
from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.counter_random import stream
from dist_ml.models import LayerFactory, Samples
from dist_ml.models.blocks import Block, BlockModel
from dist_ml.models.blocks import chain as chained
from dist_ml.models.initialise import initialise_linear
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer
from tests.unit.train_worlds import changed

SYNCHRONOUS = [name for name in SCHEDULES if name not in ("pipedream_2bw", "file")]
# 8 layers of uneven widths: enough for two stages on each of four ranks; and 16.
HIDDEN = (7, 6, 9, 5, 8, 6, 7)
DEEP = (*HIDDEN, 4, 6, 5, 7, 8, 6, 7, 5)
NUM_STEPS = 5  # an epoch, and what follows on its momenta and masks


class Trained(NamedTuple):
    """What a run comes to."""

    losses: list[float]
    skipped: list[bool]
    correct: list[tuple[float, ...]]
    evaluation: tuple[float, float | None]
    weights: dict[str, torch.Tensor] | None  # on rank 0


def settings(hidden: Sequence[int] = HIDDEN, **changes: Any) -> TrainConfig:
    """The configuration that all compare: 30 samples in batches of 13, 13 and 4, with dropout."""
    model = ModelConfig(hidden=tuple(hidden), activation="tanh", dropout=0.1)
    return changed(**{"batch_size": 13, "model": model, "epochs": 7, **changes})


def on_mesh(config: TrainConfig, data: int, pipeline: int, **choices: Any) -> TrainConfig:
    """`config` on data x pipeline ranks."""
    return dataclasses.replace(
        config, mesh=MeshConfig(data, pipeline, 1), pipeline=PipelineConfig(**choices)
    )


def train(
    comm: Communicator,
    config: TrainConfig,
    num_steps: int = NUM_STEPS,
    look: Callable[[Trainer], None] = lambda _: None,
    goes_on: bool = False,
) -> Trained:
    """`look` sees the trainer before its first step. `goes_on`: steps run into each other, the last
    one into one that is dropped, where the schedule has them do so. Collective.
    """
    mesh = build_mesh(config, comm)
    trainer = build_trainer(config, mesh)
    look(trainer)
    if goes_on:
        epochs = (trainer.epoch(epoch, goes_on=True) for epoch in range(config.epochs))
        steps = list(islice(chain.from_iterable(epochs), num_steps))
    else:
        steps = list(trainer.next_steps(num_steps))
    found = trainer.evaluate(trainer.dataset.test, batch_size=5)
    weights = trainer.weights() if comm.rank == 0 else (trainer.weights(), None)[1]
    kept = {name: tensor.clone() for name, tensor in weights.items()} if weights else None
    trainer.close()
    mesh.free()
    return Trained(
        [step.loss for step in steps],
        [step.skipped for step in steps],
        [step.metrics for step in steps],
        (found.loss, found.accuracy),
        kept,
    )


POISONED = 11


def poison(trainer: Trainer) -> None:
    """One training sample holds NaN."""
    split = trainer.dataset.train
    batch = split.batch

    def poisoned(ids: np.ndarray) -> Any:
        found = batch(ids)
        found.inputs[torch.from_numpy(ids == POISONED)] = math.nan
        return found

    object.__setattr__(split, "batch", poisoned)  # a frozen dataclass


def simulate(config: TrainConfig, num_steps: int = NUM_STEPS) -> Trained:
    """The delayed update of `pipedream_2bw`, by a plain loop in one process."""
    found = train_delayed(config, num_steps)
    evaluation = found.evaluation
    return Trained(
        found.losses,
        [False] * num_steps,
        found.metrics,
        (evaluation.loss, evaluation.accuracy),
        found.model.state_dict(),
    )


def assert_same(found: Sequence[Trained], expected: Trained, tolerance: float = 1e-10) -> None:
    """All ranks tell the same, and it is `expected`; `tolerance` is relative."""
    for rank in found:
        assert rank[:4] == found[0][:4] or any(map(math.isnan, rank.losses))
    first = found[0]
    assert first.skipped == expected.skipped
    assert first.correct == expected.correct
    pairs = [*zip(first.losses, expected.losses, strict=True)]
    pairs.append((first.evaluation[0], expected.evaluation[0]))
    for ours, theirs in pairs:
        assert math.isclose(ours, theirs, rel_tol=tolerance) or (
            math.isnan(ours) and math.isnan(theirs)
        ), (ours, theirs)
    assert first.evaluation[1] == expected.evaluation[1]
    assert first.weights is not None
    assert expected.weights is not None
    assert list(first.weights) == list(expected.weights)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(
            first.weights[name], tensor, rtol=tolerance, atol=tolerance * float(tensor.abs().max())
        )


class Enter(nn.Module):
    """A linear layer, and a product with the tied weight."""

    def __init__(self, layer: nn.Linear, tied: nn.Parameter) -> None:
        super().__init__()
        self.layer, self.tied = layer, tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)) @ self.tied


class Middle(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x))


class Leave(nn.Module):
    """The transposed tied weight, what the first block made, and a linear layer."""

    def __init__(self, layer: nn.Linear, tied: nn.Parameter) -> None:
        super().__init__()
        self.layer, self.tied = layer, tied

    def forward(self, x: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(torch.tanh(x @ self.tied.T) + skipped)
        return outputs


class TiedSkip(BlockModel):
    """The first block's output skips to the block `leave`, and these two share a weight. `leave` is
    the last one but `num_after`.
    """

    WIDTH = 6

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        seed: int,
        dtype: torch.dtype,
        num_middle: int,
        num_after: int = 0,
    ) -> None:
        super().__init__()
        width = self.WIDTH
        tied = nn.Parameter(torch.empty(width, width, dtype=dtype))
        modules: dict[str, nn.Module] = {
            "enter": Enter(nn.Linear(num_features, width, dtype=dtype), tied)
        }
        for number in range(num_middle):
            modules[f"middle{number}"] = Middle(nn.Linear(width, width, dtype=dtype))
        modules["leave"] = Leave(nn.Linear(width, num_outputs, dtype=dtype), tied)
        for number in range(num_after):
            modules[f"after{number}"] = Middle(nn.Linear(num_outputs, num_outputs, dtype=dtype))
        self.parts = nn.ModuleDict(modules)
        self._blocks = tuple(
            block._replace(sources=(*block.sources, "enter")) if block.name == "leave" else block
            for block in chained([*modules.items()])
        )
        self._seed = seed
        if not tied.is_meta:
            self.materialize()

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        layer: Any = block.module.layer
        initialise_linear(layer, 1.0, stream(f"initial weights {block.name}", self._seed))
        if hasattr(block.module, "tied"):
            width = self.WIDTH
            plain = nn.Linear(width, width, bias=False, dtype=layer.weight.dtype, device="cpu")
            initialise_linear(plain, 1.0, stream("initial weights tied", self._seed))
            block.module.tied.detach().copy_(plain.weight.detach())  # type: ignore[operator,union-attr]


def tied_skip(
    config: ModelConfig,
    samples: Samples,
    seed: int,
    dtype: torch.dtype,
    layers: LayerFactory,
) -> TiedSkip:
    """As many blocks in the middle as `config` has hidden widths, and after `leave` as it has more
    than six.
    """
    num_middle = min(len(config.hidden), 6)
    return TiedSkip(
        samples.num_features,
        samples.num_outputs,
        seed,
        dtype,
        num_middle,
        len(config.hidden) - num_middle,
    )
