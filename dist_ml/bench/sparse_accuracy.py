"""`dist-ml bench sparse_accuracy`: accuracy with sparse gradients, after as many steps of the same
schedule as dense ones.

How what waits is remembered, and which densities come first, is chosen for each density, before
anything is tested, by accuracy on a validation split: samples of the training split of the task
`chosen_on`, with seeds of their own. All tasks then use what was chosen.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.sparse_accuracy_part import DENSE, Setting, SparseTask, choose, measure
from dist_ml.bench.worlds import Worlds
from dist_ml.config.convert import to_mapping
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import mean_interval

# Points of accuracy that may be lost, by density: from 1 % on, and below.
LIMITS = ((0.005, 0.3), (0.0, 1.0))

Runs: TypeAlias = Mapping[str, Sequence[Mapping[str, float]]]  # by candidate, a run a seed


@dataclass(frozen=True)
class SparseAccuracyBench:
    """What to train."""

    train: TrainConfig  # model and optimizer of all runs
    tasks: dict[str, SparseTask]
    seeds: tuple[int, ...]  # of initial weights and sampling, the same for all candidates
    sparse: dict[str, SparseConfig]  # label -> what is compared with dense gradients
    settings: dict[str, Setting]  # of which one is chosen for each density
    chosen_on: str  # the task whose training split they are chosen on
    validation_every: int  # every how manieth of its samples is for that
    validation_seeds: tuple[int, ...]
    warmup_share: float  # of all steps, that each warm-up density lasts

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 2:
            raise ConfigError(
                f"seeds={list(self.seeds)} must be two or more, or there is no interval"
            )
        if self.chosen_on not in self.tasks:
            raise ConfigError(f"chosen_on={self.chosen_on} must be one of {', '.join(self.tasks)}")


def run(config: SparseAccuracyBench, worlds: Worlds) -> Result:
    chosen, records = chosen_settings(config, worlds)
    checks: list[Check] = []
    for task in config.tasks:
        variants = {label: chosen[each.density].of(each) for label, each in config.sparse.items()}
        found = worlds.measure(
            "sparse_accuracy", {**_arguments(config, task, variants), "seeds": config.seeds}
        )
        rows = task_records(task, found)
        records += rows
        checks += [
            Check(f"points lost on {task} by {label}", row["points_lost"], _limit(each), "lower")
            for label, each in config.sparse.items()
            for row in rows
            if row["candidate"] == label
        ]
        records += [
            {"task": task, "candidate": label, "seed": seed, "accuracy": 100 * each["accuracy"]}
            for label, runs in found.items()
            for seed, each in zip(config.seeds, runs, strict=True)
        ]
    return Result("sparse_accuracy", records, checks)


def chosen_settings(
    config: SparseAccuracyBench, worlds: Worlds
) -> tuple[dict[float, Setting], list[Record]]:
    """For each density the setting with the best mean accuracy on the validation split, by the
    first variant of that density; the earlier one where two are as good.
    """
    task, chosen = config.chosen_on, {}
    records: list[Record] = []
    for density in dict.fromkeys(each.density for each in config.sparse.values()):
        variant = next(each for each in config.sparse.values() if each.density == density)
        candidates = {label: each.of(variant) for label, each in config.settings.items()}
        found = worlds.measure(
            "sparse_accuracy validation",
            {
                **_arguments(config, task, candidates),
                "seeds": config.validation_seeds,
                "validation_every": config.validation_every,
            },
        )
        means = {label: _mean(runs) for label, runs in found.items()}
        best = max(means, key=lambda label: means[label])
        chosen[density] = config.settings[best]
        records += [
            {
                "validated on": task,
                "density": density,
                "setting": label,
                "validation accuracy": 100 * mean,
                "chosen": "yes" if label == best else "",
            }
            for label, mean in means.items()
        ]
    return chosen, records


def task_records(task: str, found: Runs) -> list[Record]:
    """A row a candidate. Differences to dense are of the same seed."""
    return [
        {
            "task": task,
            "candidate": label,
            "steps": runs[0]["steps"],
            "accuracy": 100 * _mean(runs),
            "points_lost": lost.mean,
            "lost_low": lost.low,
            "lost_high": lost.high,
            "density": statistics.mean(each["density"] for each in runs),
            "elements": runs[0]["elements"],
        }
        for label, runs in found.items()
        for lost in [
            mean_interval(
                [
                    100 * (dense["accuracy"] - own["accuracy"])
                    for dense, own in zip(found[DENSE], runs, strict=True)
                ]
            )
        ]
    ]


def _mean(runs: Sequence[Mapping[str, float]]) -> float:
    return statistics.mean(each["accuracy"] for each in runs)


def _limit(sparse: SparseConfig) -> float:
    return next(limit for least, limit in LIMITS if sparse.density >= least)


def _arguments(
    config: SparseAccuracyBench, task: str, variants: Mapping[str, SparseConfig]
) -> dict[str, Any]:
    return {
        "train": to_mapping(config.tasks[task].of(config.train)),
        "sparse": {label: to_mapping(each) for label, each in variants.items()},
        "warmup_share": config.warmup_share,
    }


BENCH = Bench(
    "accuracy with sparse gradients, against dense ones",
    SparseAccuracyBench,
    run,
    {"sparse_accuracy": measure, "sparse_accuracy validation": choose},
    ranks=2,
)
