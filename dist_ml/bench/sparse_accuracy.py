"""`dist-ml bench sparse_accuracy`: accuracy with sparse gradients, after as many steps of the same
schedule as dense ones.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

DENSE = "dense"
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
    seeds: tuple[int, ...]  # of initial weights and sampling
    warmup_share: float  # of all steps, that each of a candidate's warmup_densities lasts
    # label -> what is compared with dense gradients; momentum correction replaces momentum
    sparse: dict[str, SparseConfig]


def run(config: SparseAccuracyBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    for task in config.tasks:
        found = worlds.measure("sparse_accuracy", {"config": to_mapping(config), "task": task})
        dense = statistics.mean(run["accuracy"] for run in found[DENSE])
        for label, runs in found.items():
            values = [run["accuracy"] for run in runs]
            lost = 100 * (dense - statistics.mean(values))
            records.append(
                {
                    "task": task,
                    "candidate": label,
                    "steps": runs[0]["steps"],
                    "accuracy": 100 * statistics.mean(values),
                    "stdev": 100 * statistics.stdev(values) if len(values) > 1 else 0.0,
                    "points_lost": lost,
                    "density_sent": statistics.mean(run["density"] for run in runs),
                }
            )
            if label != DENSE:
                density = config.sparse[label].density
                limit = next(limit for least, limit in LIMITS if density >= least)
                checks.append(Check(f"points lost on {task} by {label}", lost, limit, "lower"))
        records += [
            {"task": task, "candidate": label, "seed": seed, "accuracy": 100 * run["accuracy"]}
            for label, runs in found.items()
            for seed, run in zip(config.seeds, runs, strict=True)
        ]
    return Result("sparse_accuracy", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Test accuracy, steps and mean density sent, warm-up included, by candidate and seed."""
    config = from_mapping(SparseAccuracyBench, arguments["config"])
    train = config.train
    if arguments["task"] == "teacher":
        model = dataclasses.replace(train.model, hidden=config.teacher_hidden, dropout=0.0)
        train = dataclasses.replace(
            train, data=config.teacher, epochs=config.teacher_epochs, model=model
        )
        train = dataclasses.replace(train, batch_size=config.teacher_batch_size)
    found: dict[str, list[dict[str, float]]] = {}
    steps = train.epochs * build_trainer(train, build_mesh(train, comm)).sampler.steps_per_epoch
    warmup_steps = max(1, round(config.warmup_share * steps))
    for seed in config.seeds:
        for label, sparse in {DENSE: SparseConfig(), **config.sparse}.items():
            own = with_sparse(train, dataclasses.replace(sparse, warmup_steps=warmup_steps))
            trainer = build_trainer(dataclasses.replace(own, seed=seed), build_mesh(train, comm))
            density = _train(trainer, train.epochs)
            accuracy = trainer.evaluate(trainer.dataset.test).accuracy
            assert accuracy is not None
            found.setdefault(label, []).append(
                {"accuracy": accuracy, "steps": steps, "density": density}
            )
    return found


def with_sparse(train: TrainConfig, sparse: SparseConfig) -> TrainConfig:
    """`train` with these gradients; momentum correction takes the optimizer's momentum over."""
    momentum = 0.0 if sparse.momentum else train.optimizer.momentum
    return dataclasses.replace(
        train, sparse=sparse, optimizer=dataclasses.replace(train.optimizer, momentum=momentum)
    )


def _train(trainer: Trainer, epochs: int) -> float:
    """All epochs; the mean density sent."""
    densities = []
    for epoch in range(epochs):
        for _ in trainer.epoch(epoch):
            densities.append(trainer.diagnostics().get("density_sent", 1.0))
    return statistics.mean(densities)


BENCH = Bench(
    "accuracy with sparse gradients, against dense ones",
    SparseAccuracyBench,
    run,
    {"sparse_accuracy": measure},
    ranks=2,
)
