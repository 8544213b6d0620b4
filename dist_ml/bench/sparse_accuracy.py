"""`dist-ml bench sparse_accuracy`: what sparse gradients cost in accuracy, and loss against wall time on a slow link."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.train import TrainConfig
from dist_ml.launch.laboratory import Laboratory
from dist_ml.train.build import build_mesh, build_trainer

DENSE = "dense"
POINTS = 10  # of each curve, in the records
# Points of accuracy that may be lost, by density: from 1 % on, and below.
LIMITS = ((0.005, 0.3), (0.0, 1.0))


@dataclass(frozen=True)
class SparseAccuracyBench:
    """What to train."""

    train: TrainConfig  # the digits task, with the optimizer, batch size and epochs of all runs
    teacher: DataConfig  # the synthetic task
    teacher_epochs: int
    teacher_batch_size: int
    teacher_hidden: tuple[int, ...]  # hidden widths of its model
    tasks: tuple[str, ...]  # digits, teacher
    seeds: int
    sparse: dict[str, SparseConfig]  # label -> what is compared with dense gradients; momentum correction replaces momentum
    curve_rate: str | None  # of the laboratory's links, for loss against wall time; null: left out
    curve_hosts: int
    curve_hidden: tuple[int, ...]  # hidden widths of the model for it
    curve_seconds: float  # of training, for each candidate
    curves: dict[str, SparseConfig]  # label -> what is drawn beside dense


def run(config: SparseAccuracyBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    for task in config.tasks:
        accuracy = worlds.measure("sparse_accuracy", {"config": to_mapping(config), "task": task})
        dense = statistics.mean(accuracy[DENSE])
        for label, values in accuracy.items():
            mean = statistics.mean(values)
            lost = 100 * (dense - mean)
            spread = 100 * statistics.stdev(values) if len(values) > 1 else 0.0
            records.append({"task": task, "candidate": label, "accuracy": 100 * mean, "stdev": spread, "points_lost": lost})
            if label != DENSE:
                density = config.sparse[label].density
                limit = next(limit for least, limit in LIMITS if density >= least)
                checks.append(Check(f"C4 points lost on {task} by {label}", lost, limit, "lower"))
    if config.curve_rate is not None:
        records += _curves(config, worlds)
    return Result("sparse_accuracy", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Test accuracy by candidate and seed."""
    config = from_mapping(SparseAccuracyBench, arguments["config"])
    train = config.train
    if arguments["task"] == "teacher":
        model = dataclasses.replace(train.model, hidden=config.teacher_hidden, dropout=0.0)
        train = dataclasses.replace(train, data=config.teacher, epochs=config.teacher_epochs, model=model)
        train = dataclasses.replace(train, batch_size=config.teacher_batch_size)
    found: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        for label, sparse in {DENSE: SparseConfig(), **config.sparse}.items():
            trainer = build_trainer(dataclasses.replace(_with(train, sparse), seed=seed), build_mesh(train, comm))
            for epoch in range(train.epochs):
                for _ in trainer.epoch(epoch):
                    pass
            accuracy = trainer.evaluate(trainer.dataset.test).accuracy
            assert accuracy is not None
            found.setdefault(label, []).append(accuracy)
    return found


def curve(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """(seconds, mean loss of the last steps) of each candidate, each trained anew for the same wall time."""
    config = from_mapping(SparseAccuracyBench, arguments["config"])
    model = dataclasses.replace(config.train.model, hidden=config.curve_hidden, dropout=0.0)
    train = dataclasses.replace(config.train, data=config.teacher, model=model)
    found: dict[str, list[tuple[float, float]]] = {}
    for label, sparse in {DENSE: SparseConfig(), **config.curves}.items():
        trainer = build_trainer(_with(train, sparse), build_mesh(train, comm))
        trainer.step(0, 0)  # compiles
        points: list[tuple[float, float]] = []
        losses: list[float] = []
        comm.barrier()
        start = time.perf_counter()
        index = 0
        while _go_on(comm, time.perf_counter() - start, config.curve_seconds):
            epoch, step = divmod(index, trainer.sampler.steps_per_epoch)
            losses.append(trainer.step(epoch, step).loss)
            points.append((time.perf_counter() - start, statistics.mean(losses[-10:])))
            index += 1
        found[label] = points
    return found


def _curves(config: SparseAccuracyBench, worlds: Worlds) -> list[Record]:
    with Laboratory(config.curve_hosts, config.curve_rate) as laboratory:
        points = worlds.measure(
            "sparse_curve",
            {"config": to_mapping(config)},
            ranks=config.curve_hosts,
            mpi="mpich",
            laboratory=laboratory,
            environment={"OMP_NUM_THREADS": "1"},
        )
    target = 1.02 * points[DENSE][-1][1]
    records: list[Record] = []
    for label, values in points.items():
        reached = next((seconds for seconds, loss in values if loss <= target), None)
        records.append(
            {
                "curve": f"{config.curve_hosts} hosts, {config.curve_rate}",
                "candidate": label,
                "steps": len(values),
                "final_loss": values[-1][1],
                "seconds_to_dense_final_loss": reached if reached is not None else "not reached",
            }
        )
    for label, values in points.items():
        shown = values[:: max(1, len(values) // POINTS)]
        records += [{"candidate": label, "seconds": seconds, "loss": loss} for seconds, loss in shown]
    return records


def _go_on(comm: Communicator, elapsed: float, limit: float) -> bool:
    """Rank 0's clock decides for all."""
    word = np.array([elapsed < limit], np.int32)
    comm.broadcast(word)
    return bool(word[0])


def _with(train: TrainConfig, sparse: SparseConfig) -> TrainConfig:
    """`train` with these gradients; momentum correction takes the optimizer's momentum over."""
    momentum = 0.0 if sparse.momentum else train.optimizer.momentum
    return dataclasses.replace(train, sparse=sparse, optimizer=dataclasses.replace(train.optimizer, momentum=momentum))


BENCH = Bench(
    "accuracy with sparse gradients, and loss against wall time on a slow link",
    SparseAccuracyBench,
    run,
    {"sparse_accuracy": measure, "sparse_curve": curve},
    ranks=2,
)
