"""`dist-ml bench reproduce`: the default run's accuracy, and that its losses do not depend on the
number of ranks.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments
from dist_ml.bench.form import Check, Record, Result, least, most
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.build import build_mesh, build_trainer


@dataclass(frozen=True)
class ReproduceBench:
    """What to compare."""

    train: TrainConfig  # the run, dropout and all
    ranks: tuple[int, ...]  # the numbers of ranks whose losses must agree
    first_steps: int  # compared in fp32, where rounding differences grow step by step

    def __post_init__(self) -> None:
        if len(set(self.ranks)) < 2:
            raise ConfigError(
                f"ranks={list(self.ranks)} has nothing to compare; name at least two numbers"
            )


def run(config: ReproduceBench, worlds: Worlds) -> Result:
    runs = {
        (precision, ranks): worlds.measure(
            "losses", _arguments(config.train, precision), ranks=ranks
        )
        for precision, ranks in itertools.product(("fp32", "fp64"), config.ranks)
    }
    first = config.ranks[0]
    records: list[Record] = []
    for (precision, ranks), outcome in runs.items():
        compared = config.first_steps if precision == "fp32" else None
        apart = difference(
            outcome["losses"][:compared], runs[precision, first]["losses"][:compared]
        )
        row = {
            "precision": precision,
            "ranks": ranks,
            "steps": len(outcome["losses"][:compared]),
            "difference": apart,
        }
        records.append({**row, "test_accuracy": outcome["test_accuracy"]})
    return Result("reproduce", records, loss_checks(records))


def loss_checks(records: Sequence[Record]) -> list[Check]:
    """Of the worst number of ranks."""
    accuracy = least(row["test_accuracy"] for row in records if row["precision"] == "fp32")
    worst = {
        precision: most(row["difference"] for row in records if row["precision"] == precision)
        for precision in ("fp32", "fp64")
    }
    return [
        Check("test accuracy of the default run", accuracy, 0.97, "higher"),
        Check(
            "relative difference of losses over the first steps, fp32",
            worst["fp32"],
            1e-5,
            "lower",
        ),
        Check("relative difference of losses over the run, fp64", worst["fp64"], 1e-9, "lower"),
    ]


def _arguments(train: TrainConfig, precision: Any) -> dict[str, Any]:
    return to_arguments(dataclasses.replace(train, precision=precision))


def difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """The largest relative difference of two runs' losses, step by step; NaN where one is."""
    ours, theirs = np.array(losses, np.float64), np.array(reference, np.float64)
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All losses of a run, and its test accuracy."""
    config = from_arguments(arguments)
    trainer = build_trainer(config, build_mesh(config, comm))
    losses = [step.loss for epoch in range(config.epochs) for step in trainer.epoch(epoch)]
    return {"losses": losses, "test_accuracy": trainer.evaluate(trainer.dataset.test).accuracy}


BENCH = Bench(
    "the default run's accuracy, and its losses at several numbers of ranks",
    ReproduceBench,
    run,
    {"losses": measure},
    2,
)
