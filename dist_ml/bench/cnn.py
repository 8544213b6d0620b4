"""The CNN's rows of `dist-ml bench models`: our training step on images over plain PyTorch loops,
with channels first and last, on one rank.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_ml.bench.bare_cnn import BareCNN
from dist_ml.bench.bare_loop import BareLoop
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
from dist_ml.counter_random import stream, uniform
from dist_ml.measure.compare import fastest, ratio
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

FIRST, LAST = "plain torch", "plain torch, channels last"
# At 0.01 the loss on random pixels jumps, and rounding grows with it: the two loops lie 4e-4 apart
# after 20 steps (ours is the second one to the bit).
_LEARNING_RATE = 0.001


@dataclass(frozen=True)
class CnnBench:
    """What to compare."""

    train: TrainConfig  # precision, seed and the like
    shape: tuple[int, ...]  # of an image: channels, height, width
    num_outputs: int  # classes
    channels: tuple[int, ...]  # of the model, by stage
    blocks_per_stage: int
    groups: int
    num_samples: int  # images of the data set, memory-mapped for ours, in memory for the plain loop
    batch_size: int  # images of a step
    steps: int  # measured together
    rounds: int  # of alternation


def run(config: CnnBench, worlds: Worlds) -> Result:
    arguments = {
        "train": to_arguments(training(config)),
        "shape": list(config.shape),
        "num_outputs": config.num_outputs,
        "num_samples": config.num_samples,
        "steps": config.steps,
        "rounds": config.rounds,
    }
    found = worlds.measure("cnn step", arguments, ranks=1)
    seconds = found["seconds"]
    over = ratio(seconds[OURS], seconds[fastest(seconds, (FIRST, LAST))]).median
    checks = [
        Check("cnn step over plain torch", over, 1.05, "lower"),
        Check(
            f"relative difference of a cnn's losses, {COMPARED_STEPS} steps",
            found["loss"],
            1e-4,
            "lower",
        ),
    ]
    return Result("cnn", records("cnn", found, config.batch_size, "images"), checks)


def training(config: CnnBench) -> TrainConfig:
    """Ours, with the optimizer of the plain loops; the samples are made where it is measured."""
    return dataclasses.replace(
        config.train,
        batch_size=config.batch_size,
        model=ModelConfig(
            "cnn",
            channels=config.channels,
            blocks_per_stage=config.blocks_per_stage,
            groups=config.groups,
        ),
        optimizer=OptimizerConfig("sgd", lr=_LEARNING_RATE, weight_decay=5e-4, momentum=0.9),
        lr_schedule=LRScheduleConfig("constant", warmup_fraction=0.0),
    )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step, by candidate and round, and how far their losses lie apart."""
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        data = save_images(arguments, Path(folder))
        config = dataclasses.replace(from_arguments(arguments["train"]), data=data)
        trainer = build_trainer(config, build_mesh(config, comm))
        loops = {name: plain_loop(config, trainer, name == LAST) for name in (FIRST, LAST)}
        steps, rounds = arguments["steps"], arguments["rounds"]
        return measure_over_plain(trainer, loops, steps, rounds, losses=True)


def save_images(arguments: Mapping[str, Any], folder: Path) -> DataConfig:
    """Random images, brighter or darker by their class, as files of arrays in `folder`."""
    shape, num = tuple(arguments["shape"]), arguments["num_samples"]
    classes = np.arange(num) % arguments["num_outputs"]
    pixels = uniform(stream("bench images"), np.arange(num * math.prod(shape)))
    images = pixels.astype(np.float32).reshape(num, *shape)
    images *= (1 + classes.astype(np.float32).reshape(num, 1, 1, 1)) / arguments["num_outputs"]
    for split, end in (("train", num), ("test", arguments["num_outputs"])):
        np.save(folder / f"{split}_x.npy", images[:end])
        np.save(folder / f"{split}_y.npy", classes[:end])
    return DataConfig(name="arrays", path=str(folder), num_outputs=arguments["num_outputs"])


def plain_loop(config: TrainConfig, trainer: Trainer, channels_last: bool) -> BareLoop:
    """The plain model with the weights that ours has now, on the same images, by fused SGD."""
    model, train, chosen = config.model, trainer.dataset.train, config.optimizer
    plain = BareCNN(
        train.sample_shape,
        model.channels,
        train.num_outputs,
        model.blocks_per_stage,
        model.groups,
        channels_last,
    )
    plain.load_state_dict(trainer.model.state_dict())
    images = train.batch(np.arange(train.num_samples))
    optimizer = torch.optim.SGD(
        plain.parameters(),
        chosen.lr,
        chosen.momentum,
        weight_decay=chosen.weight_decay,
        fused=True,
    )
    return BareLoop(plain, optimizer, images.inputs, images.targets, config.batch_size)
