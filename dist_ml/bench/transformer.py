"""`dist-ml bench transformer`: our training step of a Transformer on text over a plain PyTorch loop
of the same model with its best settings, on one rank.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_ml.bench.bare_transformer import BareLoop, BareTransformer
from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.reproduce import difference
from dist_ml.bench.step_candidates import OURS, our_steps
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import LRScheduleConfig, OptimizerConfig, TrainConfig
from dist_ml.measure.compare import alternate, own_seconds, ratio, spread
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

PLAIN = "plain torch"
COMPARED_STEPS = 20


@dataclass(frozen=True)
class TransformerBench:
    """What to compare."""

    train: TrainConfig  # precision, seed and the like
    width: int
    depth: int
    heads: int
    num_tokens: int  # of a window
    batch_size: int  # windows of a step
    dropout: float  # by torch's own masks in the plain loop; 0: losses are compared, too
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
    records: list[Record] = []
    for name, values in seconds.items():
        middle = spread(values)
        records.append(
            {
                "step": name,
                "parameters": found["parameters"],
                "ms": 1e3 * middle.median,
                "low": 1e3 * middle.low,
                "high": 1e3 * middle.high,
                "tokens/s": tokens / middle.median,
                "ours over it": ratio(seconds[OURS], values).median,
            }
        )
    over = ratio(seconds[OURS], seconds[PLAIN]).median
    checks = [Check("transformer step over plain torch", over, 1.05, "lower")]
    if found["loss"] is not None:
        name = f"relative difference of a transformer's losses, {COMPARED_STEPS} steps"
        checks.append(Check(name, found["loss"], 1e-4, "lower"))
    return Result("transformer", records, checks)


def training(config: TransformerBench) -> TrainConfig:
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
    config, steps = from_arguments(arguments["train"]), arguments["steps"]
    trainer = build_trainer(config, build_mesh(config, comm))
    loop = plain_loop(config, trainer)
    loss = None if config.model.dropout else _loss_difference(trainer, loop)
    candidates = {OURS: our_steps(trainer, steps), PLAIN: lambda: own_seconds(loop.step, steps)}
    alternate(candidates, 1)
    return {
        "seconds": alternate(candidates, arguments["rounds"]),
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def plain_loop(config: TrainConfig, trainer: Trainer) -> BareLoop:
    """The plain model with the weights that ours has now, on the same windows."""
    model, train = config.model, trainer.dataset.train
    plain = BareTransformer(
        model.width, model.depth, model.heads, train.num_features, model.dropout
    )
    plain.load_state_dict(trainer.model.state_dict())
    windows = train.batch(np.arange(train.num_samples))
    optimizer = config.optimizer
    return BareLoop(
        plain,
        windows.inputs,
        windows.targets,
        config.batch_size,
        optimizer.lr,
        optimizer.weight_decay,
    )


def _loss_difference(trainer: Trainer, loop: BareLoop) -> float:
    ours, plain = [], []
    for number in range(COMPARED_STEPS):
        epoch, index = divmod(number, trainer.sampler.steps_per_epoch)
        ids = trainer.sampler.share(epoch, index, 0, 1)
        ours.append(trainer.step(epoch, index).loss)
        plain.append(loop.step_on(torch.from_numpy(ids)))
    return difference(ours, plain)


BENCH = Bench(
    "our training step of a Transformer against a plain PyTorch loop",
    TransformerBench,
    run,
    {"transformer step": measure},
    ranks=1,
)
