"""`dist-ml bench step`: what our training step costs over a bare PyTorch loop of the same model, on
one rank.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from dist_ml.bench import kernel_step
from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.form import Check, Result, alternate, median_ratio
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.kernels.tuner import FALLBACK
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer


@dataclass(frozen=True)
class StepBench:
    """What to compare."""

    train: TrainConfig  # optimizer, precision and the like
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int  # samples of a step
    # of the data set, from memory-mapped files for ours and from memory for the bare loop
    num_samples: int
    steps: int  # measured together
    rounds: int  # of alternation
    # torch: the overhead of our step; auto, or one of gemm's KERNELS: what it gains on a large MLP,
    # by batch size
    kernel: str
    batches: tuple[int, ...]  # those batch sizes

    def __post_init__(self) -> None:
        for batch_size in self.batches:
            if batch_size not in kernel_step.LIMITS:
                raise ConfigError(
                    f"batches={list(self.batches)}: use some of "
                    f"{', '.join(map(str, kernel_step.LIMITS))}"
                )


def run(config: StepBench, worlds: Worlds) -> Result:
    if config.kernel != FALLBACK:
        return kernel_step.run(config.train, config.kernel, config.rounds, config.batches, worlds)
    train = with_widths(config.train, config.widths, config.batch_size)
    arguments = {
        "train": to_arguments(train),
        "num_samples": config.num_samples,
        "steps": config.steps,
        "rounds": config.rounds,
    }
    seconds = worlds.measure("step", arguments, ranks=1)
    ratio = median_ratio(seconds["dist_ml"], seconds["bare torch"])
    records = [
        {
            "step": name,
            "milliseconds": 1e3 * statistics.median(values),
            "fastest": 1e3 * min(values),
        }
        for name, values in seconds.items()
    ]
    return Result("step", records, [Check("A2 step overhead", ratio, 1.05, "lower")])


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds a step, by candidate and round."""
    steps = arguments["steps"]
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        config = from_arguments(arguments["train"])
        trainer = build_trainer(
            on_arrays(config, arguments["num_samples"], folder), build_mesh(config, comm)
        )
        candidates = {
            "dist_ml": our_steps(trainer, steps),
            "bare torch": bare_steps(trainer, config, steps),
        }
        alternate(candidates, 2)
        return alternate(candidates, arguments["rounds"])


def measure_kernel(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return kernel_step.measure(comm, arguments, our_steps, bare_steps)


def our_steps(trainer: Trainer, steps: int) -> Callable[[], float]:
    """Our step with all that it does in a run, from dealing the samples to the update."""

    def seconds() -> float:
        start = time.perf_counter()
        for index in range(steps):
            trainer.step(0, index % trainer.sampler.steps_per_epoch)
        return (time.perf_counter() - start) / steps

    return seconds


def bare_steps(trainer: Trainer, config: TrainConfig, steps: int) -> Callable[[], float]:
    """The loop that a PyTorch user would write, on the same samples, held in memory."""
    split = trainer.dataset.train
    x, y, *_ = split.batch(torch.arange(split.num_samples).numpy())
    layers: list[torch.nn.Module] = []
    widths = (split.num_features, *config.model.hidden, split.num_outputs)
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs, dtype=x.dtype), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(
        model.parameters(),
        config.optimizer.lr,
        config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    loss_function = torch.nn.CrossEntropyLoss()
    order = torch.randperm(len(x))

    def seconds() -> float:
        start = time.perf_counter()
        for index in range(steps):
            ids = order[index * config.batch_size : (index + 1) * config.batch_size]
            optimizer.zero_grad()
            loss = loss_function(model(x[ids]), y[ids])
            loss.backward()
            optimizer.step()
            loss.item()
        return (time.perf_counter() - start) / steps

    return seconds


BENCH = Bench(
    "our training step against a bare PyTorch loop",
    StepBench,
    run,
    {"step": measure, "kernel step": measure_kernel},
    ranks=1,
)
