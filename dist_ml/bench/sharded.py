"""`dist-ml bench sharded`: what the sharded optimizer keeps on a rank against the dense one, and
whether it learns the same.
"""

import dataclasses
import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, least, most
from dist_ml.bench.memory import load_torch
from dist_ml.bench.reproduce import difference
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.measure.memory import peak_bytes
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
    for ranks in config.ranks:
        dense = _measured(worlds, train, "dense", ranks, config.num_steps)
        for stage in config.stages:
            found = _measured(worlds, train, stage, ranks, config.num_steps)
            records.append(
                {
                    "ranks": ranks,
                    "data_parallel": stage,
                    "bytes": found["kept"],
                    "dense_bytes": dense["kept"],
                    "share_times_ranks": found["kept"] / dense["kept"] * ranks,
                    "peak_bytes": found["peak"],
                    "dense_peak_bytes": dense["peak"],
                    "peak_over_dense": found["peak"] / dense["peak"] if dense["peak"] else None,
                    "loss_difference": difference(found["losses"], dense["losses"]),
                }
            )
    return Result("sharded", records, shard_checks(records))


def shard_checks(records: Sequence[Record]) -> list[Check]:
    """What ZeRO-2 keeps from step to step is a P-th of the dense optimizer's and gradients' memory,
    neither more nor less; through whole steps a rank needs less than with the dense one; and no
    stage changes what is learned.
    """
    peaks = [row["peak_over_dense"] or math.nan for row in records
             if row["data_parallel"] == "zero2"]  # fmt: skip
    shares = [row["share_times_ranks"] for row in records if row["data_parallel"] == "zero2"]
    apart = most(row["loss_difference"] for row in records)
    checks = [Check("relative difference of losses", apart, 1e-5, "lower")]
    if shares:
        what = "ZeRO-2 optimizer and gradient memory times ranks over dense"
        checks += [
            Check(f"{what}, most", most(shares), 1.05, "lower"),
            Check(f"{what}, least", least(shares), 0.95, "higher"),
            Check("ZeRO-2 peak resident memory over dense, most", most(peaks), 1.0, "lower"),
        ]
    return checks


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Losses; the most bytes that a rank keeps from step to step beside parameters and samples; and
    the most by which its resident memory rose at any moment, in whole steps.
    """
    config = from_arguments(arguments["train"])
    load_torch()
    before = peak_bytes()
    trainer = build_trainer(config, build_mesh(config, comm))
    losses = [trainer.step(0, index).loss for index in range(arguments["num_steps"])]
    largest = torch.tensor([kept_bytes(trainer), peak_bytes() - before])
    comm.allreduce(largest, "max")
    trainer.close()
    return {"losses": losses, "kept": int(largest[0]), "peak": int(largest[1])}


def kept_bytes(trainer: Trainer) -> int:
    """The memory of all living tensors but the model's: gradients, optimizer state, and whatever
    else a rank holds on to.
    """
    parameters = {
        parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()
    }
    gc.collect()
    # by type: isinstance would ask proxies, of which some answer with a warning
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
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
