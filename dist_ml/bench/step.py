"""`dist-ml bench step`: what our training step costs over a bare PyTorch loop of the same model, on
one rank.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_ml.bench import kernel_step
from dist_ml.bench.bare_step import BARE, FUSED
from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, milliseconds
from dist_ml.bench.step_candidates import OURS, bare_candidates, our_steps
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.kernels.tuner import FALLBACK
from dist_ml.measure.compare import alternate, fastest, ratio
from dist_ml.train.build import build_mesh, build_trainer


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
    best = fastest(seconds, (BARE, FUSED))
    limit = Check(
        "step over the best bare loop", ratio(seconds[OURS], seconds[best]).median, 1.05, "lower"
    )
    return Result("step", step_records(seconds), [limit])


def step_records(seconds: Mapping[str, list[float]]) -> list[Record]:
    """A row a candidate: its step, the quartiles, and our step over it."""
    return [
        {
            "step": name,
            **milliseconds(values),
            "ours over it": ratio(seconds[OURS], values).median,
        }
        for name, values in seconds.items()
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds a step, by candidate and round."""
    steps = arguments["steps"]
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        config = on_arrays(from_arguments(arguments["train"]), arguments["num_samples"], folder)
        trainer = build_trainer(config, build_mesh(config, comm))
        candidates = {OURS: our_steps(trainer, steps), **bare_candidates(trainer, config, steps)}
        alternate(candidates, 2)
        return alternate(candidates, arguments["rounds"])


BENCH = Bench(
    "our training step against a bare PyTorch loop",
    StepBench,
    run,
    {"step": measure, "kernel step": kernel_step.measure},
    ranks=1,
)
