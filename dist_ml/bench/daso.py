"""`dist-ml bench daso`: training seconds to an accuracy with local steps against dense gradients,
in the emulated network.

Evaluation takes no time from anybody: a run keeps its parameters at fixed times and is evaluated
when it is over. Nodes between synchronisations differ, so what is evaluated is their mean, and the
seconds that making it takes are added to those of training.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import to_arguments
from dist_ml.bench.daso_part import DENSE, measure
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.config.allreduce import DataParallelConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError

DASO = "daso"
LIMIT = 0.5  # of dense's seconds

Run: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class DasoBench:
    """What to train to which accuracy, over which links."""

    train: TrainConfig  # model, data, optimizer, allreduce
    hosts: int  # of the emulated network, two ranks each
    rate: str  # of their links, as tc writes it
    candidates: dict[str, DataParallelConfig]  # compared; dense and daso among them
    targets: tuple[float, ...]  # accuracies on the test samples
    checked_target: float  # the one that is held against a limit
    seeds: tuple[int, ...]  # of initial weights and sampling, one run a candidate each
    seconds: float  # of training, of each run
    every_seconds: float  # of training, between parameters that are evaluated

    def __post_init__(self) -> None:
        if not {DENSE, DASO} <= set(self.candidates):
            raise ConfigError(f"candidates must hold {DENSE} and {DASO}, which are compared")
        if self.checked_target not in self.targets:
            raise ConfigError(
                f"checked_target={self.checked_target} must be one of targets={list(self.targets)}"
            )


def run(config: DasoBench, worlds: Worlds) -> Result:
    order = [
        (name, seed)
        for number, seed in enumerate(config.seeds)
        for name in list(config.candidates)[:: 1 if number % 2 == 0 else -1]
    ]
    trains = [
        dataclasses.replace(config.train, data_parallel=config.candidates[name], seed=seed)
        for name, seed in order
    ]
    arguments = {
        "trains": [to_arguments(train) for train in trains],
        "targets": config.targets,
        "seconds": config.seconds,
        "every_seconds": config.every_seconds,
    }
    with worlds.network(config.hosts, config.rate) as network:
        found = worlds.measure(
            "daso",
            arguments,
            ranks=2 * config.hosts,
            mpi="mpich",
            network=network,
            environment={"OMP_NUM_THREADS": "1"},
        )
    runs: dict[str, list[Run]] = {name: [] for name in config.candidates}
    for (name, _), each in zip(order, found, strict=True):
        runs[name].append(each)
    return Result("daso", records_of(config, runs), [target_check(config, runs)])


def records_of(config: DasoBench, runs: Mapping[str, Sequence[Run]]) -> list[Record]:
    """A row a candidate and target; then one a run."""
    rows: list[Record] = []
    for name, target in ((name, target) for name in runs for target in config.targets):
        times = seconds_to(runs[name], target)
        reached = sum(map(math.isfinite, times))
        middle, over = statistics.median(times), over_dense(runs, name, target)
        rows.append(
            {
                "candidate": name,
                "target": target,
                "reached": f"{reached} of {len(times)}",
                "median_seconds": middle if math.isfinite(middle) else None,
                "over_dense": over if math.isfinite(over) else None,
            }
        )
    return rows + [
        {
            "candidate": name,
            "seed": seed,
            "steps": each["steps"],
            "step_ms": 1e3 * each["trained_seconds"] / each["steps"],
            "merge_ms": 1e3 * each["merge_seconds"],
            **{f"to_{target:g}": each["reached"][str(target)] for target in config.targets},
        }
        for name in runs
        for seed, each in zip(config.seeds, runs[name], strict=True)
    ]


def seconds_to(runs: Sequence[Run], target: float) -> list[float]:
    """Of each run; infinite where it did not get there."""
    found = (each["reached"][str(target)] for each in runs)
    return [math.inf if seconds is None else float(seconds) for seconds in found]


def over_dense(runs: Mapping[str, Sequence[Run]], name: str, target: float) -> float:
    """The median over seeds of a candidate's seconds over dense's. A run that did not get there
    has taken infinitely long, dense's too: such a pair says nothing good of the candidate.
    """
    pairs = zip(seconds_to(runs[name], target), seconds_to(runs[DENSE], target), strict=True)
    return statistics.median(
        own / dense if math.isfinite(own) and math.isfinite(dense) else math.inf
        for own, dense in pairs
    )


def target_check(config: DasoBench, runs: Mapping[str, Sequence[Run]]) -> Check:
    target = config.checked_target
    what = f"daso's seconds to {100 * target:g} % over dense's"
    return Check(what, over_dense(runs, DASO, target), LIMIT, "lower")


BENCH = Bench(
    "training seconds to an accuracy with local steps, against dense gradients",
    DasoBench,
    run,
    {"daso": measure},
    ranks=8,
)
