"""`dist-ml bench daso`: time to a target accuracy with local steps against a blocking dense
exchange, in the emulated network.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import AllreduceConfig, DataParallelConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.build import build_mesh, build_trainer


@dataclass(frozen=True)
class DasoBench:
    """What to train to which accuracy, over which links."""

    train: TrainConfig  # model, data, optimizer
    hosts: int  # of the emulated network, two ranks each
    rate: str  # of their links, as tc writes it
    target_accuracy: float  # on the test samples
    evaluate_steps: int  # between evaluations, whose time is not counted
    period: int  # of daso
    warmup_steps: int  # of daso


def run(config: DasoBench, worlds: Worlds) -> Result:
    dense = DataParallelConfig()
    daso = DataParallelConfig("daso", period=config.period, warmup_steps=config.warmup_steps)
    periodic = DataParallelConfig("periodic", period=config.period)
    records: list[Record] = []
    with worlds.network(config.hosts, config.rate) as network:
        for kind in (dense, daso, periodic):
            overlap: Literal["auto", "none"] = "none" if kind is dense else "auto"
            allreduce = AllreduceConfig("hierarchical", overlap=overlap)
            train = dataclasses.replace(config.train, data_parallel=kind, allreduce=allreduce)
            arguments = {
                "train": to_arguments(train),
                "target": config.target_accuracy,
                "every": config.evaluate_steps,
            }
            found = worlds.measure(
                "daso", arguments, ranks=2 * config.hosts, mpi="mpich", network=network
            )
            records.append({"data_parallel": kind.name, **found})
    seconds = {str(record["data_parallel"]): float(record["seconds"]) for record in records}
    check = Check(
        "time to accuracy over blocking dense", seconds["daso"] / seconds["dense"], 0.5, "lower"
    )
    return Result("daso", records, [check])


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and steps of training until the target; evaluations are left out of both."""
    config = from_arguments(arguments["train"])
    trainer = build_trainer(config, build_mesh(config, comm))
    spent, steps = 0.0, 0
    for epoch in range(config.epochs):
        for index in range(trainer.sampler.steps_per_epoch):
            start = time.perf_counter()
            trainer.step(epoch, index)
            spent += time.perf_counter() - start
            steps += 1
            if steps % arguments["every"] == 0:
                accuracy = trainer.evaluate(trainer.dataset.test).accuracy
                elapsed = torch.tensor(spent, dtype=torch.float64)
                comm.allreduce(elapsed, "max")
                if accuracy is not None and accuracy >= arguments["target"]:
                    trainer.close()
                    return {"seconds": float(elapsed), "steps": steps, "accuracy": accuracy}
    raise ConfigError(
        f"target_accuracy={arguments['target']} was not reached in epochs={config.epochs}; raise "
        "train.epochs"
    )


BENCH = Bench(
    "time to accuracy with local steps against blocking dense",
    DasoBench,
    run,
    {"daso": measure},
    ranks=8,
)
