"""`dist-ml bench sharded`: what the sharded optimizer keeps on a rank against the dense one, and
whether it learns the same.
"""

import dataclasses
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.reproduce import difference
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer


@dataclass(frozen=True)
class ShardedBench:
    """What to train, dense and sharded."""

    train: TrainConfig  # the optimizer
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int  # of a step, over all ranks
    num_steps: int
    ranks: tuple[int, ...]
    stages: tuple[Literal["zero1", "zero2"], ...]  # data_parallel


def run(config: ShardedBench, worlds: Worlds) -> Result:
    train = with_widths(config.train, config.widths, config.batch_size)
    records: list[Record] = []
    apart, shares = 0.0, [1.0]
    for ranks in config.ranks:
        dense = _measured(worlds, train, "dense", ranks, config.num_steps)
        for stage in config.stages:
            found = _measured(worlds, train, stage, ranks, config.num_steps)
            row = {
                "ranks": ranks,
                "data_parallel": stage,
                "bytes": found["kept"],
                "dense_bytes": dense["kept"],
            }
            row |= {"share_times_ranks": found["kept"] / dense["kept"] * ranks}
            row |= {"loss_difference": difference(found["losses"], dense["losses"])}
            records.append(row)
            apart = max(apart, row["loss_difference"])
            if stage == "zero2":
                shares.append(row["share_times_ranks"])
    return Result(
        "sharded",
        records,
        [
            Check(
                "ZeRO-2 optimizer and gradient memory times ranks, over dense",
                max(shares),
                1.05,
                "lower",
            ),
            Check("the same, least", min(shares), 0.95, "higher"),
            Check("relative difference of losses", apart, 1e-5, "lower"),
        ],
    )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Losses, and the most bytes that a rank keeps from step to step beside parameters and
    samples.
    """
    config = from_arguments(arguments["train"])
    trainer = build_trainer(config, build_mesh(config, comm))
    losses = [trainer.step(0, index).loss for index in range(arguments["num_steps"])]
    kept = torch.tensor(kept_bytes(trainer))
    comm.allreduce(kept, "max")
    return {"losses": losses, "kept": int(kept)}


def kept_bytes(trainer: Trainer) -> int:
    """The memory of all living tensors but the model's: gradients, optimizer state, and whatever
    else a rank holds on to.
    """
    parameters = {
        parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()
    }
    gc.collect()
    storages = [
        thing.untyped_storage() for thing in gc.get_objects() if isinstance(thing, torch.Tensor)
    ]
    storages += [p.grad.untyped_storage() for p in trainer.model.parameters() if p.grad is not None]
    return sum(
        {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in parameters}.values()
    )


def _measured(
    worlds: Worlds,
    train: TrainConfig,
    name: Literal["dense", "zero1", "zero2"],
    ranks: int,
    num_steps: int,
) -> dict[str, Any]:
    chosen = dataclasses.replace(
        train, data_parallel=dataclasses.replace(train.data_parallel, name=name)
    )
    return dict(
        worlds.measure(
            "sharded", {"train": to_arguments(chosen), "num_steps": num_steps}, ranks=ranks
        )
    )


BENCH = Bench(
    "memory and losses of the sharded optimizer against the dense one",
    ShardedBench,
    run,
    {"sharded": measure},
    ranks=2,
)
