"""The Transformer's rows of `dist-ml bench models`: our training step on text over a plain PyTorch
loop, on one rank.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_ml.bench.bare_loop import BareLoop
from dist_ml.bench.bare_transformer import BareTransformer
from dist_ml.bench.configured import from_arguments, to_arguments
from dist_ml.bench.form import Check, Result
from dist_ml.bench.over_plain import COMPARED_STEPS, records
from dist_ml.bench.over_plain import measure as measure_over_plain
from dist_ml.bench.step_candidates import OURS
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import LRScheduleConfig, OptimizerConfig, TrainConfig
from dist_ml.measure.compare import ratio
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

PLAIN = "plain torch"


@dataclass(frozen=True)
class TransformerRun:
    """What is trained."""

    train: TrainConfig  # precision, seed and the like
    width: int
    depth: int
    heads: int
    num_tokens: int  # of a window
    batch_size: int  # windows of a step
    dropout: float  # by torch's own masks in the plain loop


@dataclass(frozen=True)
class TransformerBench(TransformerRun):
    """What to compare; without dropout, losses, too."""

    steps: int  # measured together
    rounds: int  # of alternation


def run(config: TransformerBench, worlds: Worlds) -> Result:
    arguments = {
        "train": to_arguments(training(config)),
        "steps": config.steps,
        "rounds": config.rounds,
    }
    found = worlds.measure("transformer step", arguments, ranks=1)
    seconds, tokens = found["seconds"], config.batch_size * config.num_tokens
    over = ratio(seconds[OURS], seconds[PLAIN]).median
    checks = [Check("transformer step over plain torch", over, 1.05, "lower")]
    if found["loss"] is not None:
        name = f"relative difference of a transformer's losses, {COMPARED_STEPS} steps"
        checks.append(Check(name, found["loss"], 1e-4, "lower"))
    return Result("transformer", records("transformer", found, tokens, "tokens"), checks)


def training(config: TransformerRun) -> TrainConfig:
    """Ours on the packaged text, with the optimizer of the plain loop."""
    return dataclasses.replace(
        config.train,
        batch_size=config.batch_size,
        data=DataConfig("text", num_tokens=config.num_tokens, test_fraction=0.1),
        model=ModelConfig(
            "transformer",
            activation="gelu",
            dropout=config.dropout,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
        ),
        optimizer=OptimizerConfig("adamw", lr=1e-3, weight_decay=0.01),
        lr_schedule=LRScheduleConfig("constant", warmup_fraction=0.0),
    )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step, by candidate and round, and how far their losses lie apart over the first
    steps, from the same weights and on the same samples.
    """
    config = from_arguments(arguments["train"])
    trainer = build_trainer(config, build_mesh(config, comm))
    loops = {PLAIN: plain_loop(config, trainer)}
    steps, rounds, losses = arguments["steps"], arguments["rounds"], not config.model.dropout
    return measure_over_plain(trainer, loops, steps, rounds, losses=losses)


def plain_loop(config: TrainConfig, trainer: Trainer) -> BareLoop:
    """The plain model with the weights that ours has now, on the same windows."""
    model, train = config.model, trainer.dataset.train
    plain = BareTransformer(
        model.width, model.depth, model.heads, train.num_features, model.dropout
    )
    plain.load_state_dict(trainer.model.state_dict())
    windows = train.batch(np.arange(train.num_samples))
    chosen = config.optimizer
    optimizer = torch.optim.AdamW(
        plain.parameters(), chosen.lr, weight_decay=chosen.weight_decay, fused=True
    )
    return BareLoop(plain, optimizer, windows.inputs, windows.targets, config.batch_size)
