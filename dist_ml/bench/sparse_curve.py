"""`dist-ml bench sparse_curve`: loss against wall time on slow links, with dense gradients and with
each sparse allreduce.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
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


@dataclass(frozen=True)
class SparseCurveBench:
    """What to train, over which links, and for how long."""

    train: TrainConfig
    rate: str  # of the emulated network's links
    hosts: int  # one rank each
    seconds: float  # of training, for each candidate
    # label -> what is drawn beside dense gradients; momentum correction replaces momentum
    sparse: dict[str, SparseConfig]
    plot: str | None  # file to draw loss against seconds to (extra: plot)


def run(config: SparseCurveBench, worlds: Worlds) -> Result:
    with worlds.network(config.hosts, config.rate) as network:
        curves = worlds.measure(
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
            _points(curves, DRAWN),
            f"{config.hosts} hosts, {config.rate}, {config.seconds:g} s of training each",
            config.plot,
        )
    records = [*curve_records(curves), *_points(curves, LISTED)]
    return Result("sparse_curve", records, curve_checks(curves))


def curve_records(curves: Curves) -> list[Record]:
    """A row a candidate: how many steps it made, where it ended, when it reached dense's end."""
    return [
        {
            "candidate": label,
            "steps": len(curve),
            "final_loss": curve[-1][1],
            "seconds_to_dense_final_loss": None if there == math.inf else there,
        }
        for label, curve in curves.items()
        for there in [reached(curve, curves[DENSE][-1][1])]
    ]


def reached(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """The seconds at which the curve is first down at `loss`; infinite where it never is."""
    return next((seconds for seconds, each in curve if each <= loss), math.inf)


def curve_checks(curves: Curves) -> list[Check]:
    """A variant that never comes down to dense's final loss fails."""
    end, loss = curves[DENSE][-1]
    slowest = max(reached(curve, loss) for label, curve in curves.items() if label != DENSE)
    return [
        Check("slowest variant's time to dense's final loss over dense's", slowest / end, 1.0,
              "lower")
    ]  # fmt: skip


def _points(curves: Curves, num: int) -> list[Record]:
    """About `num` points of each curve."""
    return [
        {"candidate": label, "seconds": seconds, "loss": loss}
        for label, curve in curves.items()
        for seconds, loss in curve[:: max(1, len(curve) // num)]
    ]


def curve(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """(seconds, mean loss of the last `WINDOW` steps) after each step of each candidate, each
    trained anew for the same time.
    """
    config = from_mapping(SparseCurveBench, arguments)
    found: dict[str, list[tuple[float, float]]] = {}
    for label, sparse in {DENSE: SparseConfig(), **config.sparse}.items():
        for compiles in (True, False):
            trainer = build_trainer(
                with_sparse(config.train, sparse), build_mesh(config.train, comm)
            )
            limit = 0.0 if compiles else config.seconds
            points: list[tuple[float, float]] = []
            losses: list[float] = []
            comm.barrier()
            start = time.perf_counter()
            while not points or _go_on(comm, time.perf_counter() - start, limit):
                epoch, step = divmod(len(points), trainer.sampler.steps_per_epoch)
                losses.append(trainer.step(epoch, step).loss)
                points.append((time.perf_counter() - start, statistics.mean(losses[-WINDOW:])))
            trainer.close()
        found[label] = points
    return found


def _go_on(comm: Communicator, elapsed: float, limit: float) -> bool:
    """Rank 0's clock decides for all."""
    word = np.array([elapsed < limit], np.int32)
    comm.broadcast(word)
    return bool(word[0])


BENCH = Bench(
    "loss against wall time on slow links, dense and with each sparse allreduce",
    SparseCurveBench,
    run,
    {"sparse_curve": curve},
    ranks=4,
)
