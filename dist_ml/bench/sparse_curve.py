"""`dist-ml bench sparse_curve`: loss against wall time on slow links, with dense gradients and with
each sparse allreduce.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.sparse_accuracy_part import DENSE, with_sparse
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer

DRAWN, LISTED = 100, 20  # points of each curve in the plot and in the records
WINDOW = 10  # steps whose mean loss is a point

Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]  # (seconds, loss) by candidate
Rounds: TypeAlias = Sequence[Curves]


@dataclass(frozen=True)
class SparseCurveBench:
    """What to train, over which links, and for how long."""

    train: TrainConfig
    rate: str  # of the emulated network's links
    hosts: int  # one rank each
    seconds: float  # of training, for each candidate and round
    rounds: int  # in which all candidates are trained in turn, each round from a seed of its own
    # label -> what is drawn beside dense gradients; momentum correction replaces momentum
    sparse: dict[str, SparseConfig]
    plot: str | None  # file to draw loss against seconds to (extra: plot)


def run(config: SparseCurveBench, worlds: Worlds) -> Result:
    with worlds.network(config.hosts, config.rate) as network:
        rounds = worlds.measure(
            "sparse_curve",
            to_mapping(config),
            ranks=config.hosts,
            mpi="mpich",
            network=network,
            environment={"OMP_NUM_THREADS": "1"},
        )
    if config.plot is not None:
        from dist_ml.bench.plots import loss_against_seconds

        loss_against_seconds(
            _points(rounds[0], DRAWN),
            f"{config.hosts} hosts, {config.rate}, {config.seconds:g} s of training each",
            config.plot,
        )
    records = [*curve_records(rounds), *_points(rounds[0], LISTED)]
    return Result("sparse_curve", records, curve_checks(rounds))


def curve_records(rounds: Rounds) -> list[Record]:
    """A row a candidate, medians over rounds: how many steps it made, where it ended, when it
    reached dense's end.
    """
    return [
        {
            "candidate": label,
            "steps": round(statistics.median(len(curves[label]) for curves in rounds)),
            "final_loss": statistics.median(curves[label][-1][1] for curves in rounds),
            "to_dense_final_loss": over if math.isfinite(over) else None,
        }
        for label in rounds[0]
        for over in [over_dense(rounds, label)]
    ]


def over_dense(rounds: Rounds, label: str) -> float:
    """The median over rounds of the time to dense's final loss, over dense's own; infinite where
    most never reach it.
    """
    ratios = [
        reached(curves[label], curves[DENSE][-1][1]) / curves[DENSE][-1][0] for curves in rounds
    ]
    return statistics.median(ratios)


def reached(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """The seconds at which the curve is first down at `loss`; infinite where it never is."""
    return next((seconds for seconds, each in curve if each <= loss), math.inf)


def curve_checks(rounds: Rounds) -> list[Check]:
    """A variant that never comes down to dense's final loss fails."""
    slowest = most(over_dense(rounds, label) for label in rounds[0] if label != DENSE)
    return [
        Check("slowest variant's time to dense's final loss over dense's", slowest, 1.0, "lower")
    ]


def _points(curves: Curves, num: int) -> list[Record]:
    """About `num` points of each curve."""
    return [
        {"candidate": label, "seconds": seconds, "loss": loss}
        for label, curve in curves.items()
        for seconds, loss in curve[:: max(1, len(curve) // num)]
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Curves]:
    """(seconds, mean loss of the last `WINDOW` steps) after each step of each candidate, each
    trained anew for the same time, round by round.
    """
    config = from_mapping(SparseCurveBench, arguments)
    candidates = {DENSE: SparseConfig(), **config.sparse}
    for sparse in candidates.values():
        _curve(comm, with_sparse(config.train, sparse), 0.0)  # connects and compiles
    rounds: list[Curves] = []
    for number in range(config.rounds):
        train = dataclasses.replace(config.train, seed=config.train.seed + number)
        labels = list(candidates)[:: 1 if number % 2 == 0 else -1]
        found = {
            label: _curve(comm, with_sparse(train, candidates[label]), config.seconds)
            for label in labels
        }
        rounds.append({label: found[label] for label in candidates})
    return rounds


def _curve(comm: Communicator, train: TrainConfig, seconds: float) -> list[tuple[float, float]]:
    """Of one run of so many seconds, and one step at least."""
    trainer = build_trainer(train, build_mesh(train, comm))
    points: list[tuple[float, float]] = []
    losses: list[float] = []
    comm.barrier()
    start = time.perf_counter()
    while not points or _go_on(comm, time.perf_counter() - start, seconds):
        epoch, step = divmod(len(points), trainer.sampler.steps_per_epoch)
        losses.append(trainer.step(epoch, step).loss)
        points.append((time.perf_counter() - start, statistics.mean(losses[-WINDOW:])))
    trainer.close()
    return points


def _go_on(comm: Communicator, elapsed: float, limit: float) -> bool:
    """Rank 0's clock decides for all."""
    word = np.array([elapsed < limit], np.int32)
    comm.broadcast(word)
    return bool(word[0])


BENCH = Bench(
    "loss against wall time on slow links, dense and with each sparse allreduce",
    SparseCurveBench,
    run,
    {"sparse_curve": measure},
    ranks=4,
)
