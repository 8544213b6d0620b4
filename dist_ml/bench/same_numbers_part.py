"""The ranks' part of `dist-ml bench same_numbers`: training runs on these ranks, one after the
other, told to the last bit.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dist_ml.bench.configured import from_arguments
from dist_ml.bench.delayed_update import train_delayed
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import AllreduceConfig, DataParallelConfig
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.build import build_mesh, build_trainer

# Ways to exchange gradients along the data axis, each with the same sums.
DENSE = "dense"
EXCHANGES: dict[str, tuple[DataParallelConfig, AllreduceConfig]] = {
    DENSE: (DataParallelConfig("dense"), AllreduceConfig("native")),
    "ring": (DataParallelConfig("dense"), AllreduceConfig("ring")),
    "zero1": (DataParallelConfig("zero1"), AllreduceConfig("native")),
    "zero2": (DataParallelConfig("zero2"), AllreduceConfig("native")),
}
PRECISIONS = ("fp32", "fp64")
DELAYED = "pipedream_2bw"  # the schedule whose gradients are a step old


class Run(NamedTuple):
    """One way to train: on which mesh (data, pipeline, operator), under which schedule where it has
    a pipeline, by which of `EXCHANGES`, in which layout where layers are shared. On one rank the
    schedule `DELAYED` is the plain loop with its update.
    """

    mesh: tuple[int, int, int]
    schedule: str | None
    exchange: str
    layout: str | None = None

    @property
    def is_loop(self) -> bool:
        return self.schedule == DELAYED and math.prod(self.mesh) == 1


def configured(train: TrainConfig, run: Run, precision: Any) -> TrainConfig:
    """`train`, that way; precision: one of `PRECISIONS`."""
    data_parallel, allreduce = EXCHANGES[run.exchange]
    return dataclasses.replace(
        train,
        precision=precision,
        mesh=MeshConfig(*run.mesh),
        pipeline=PipelineConfig(run.schedule) if run.schedule else PipelineConfig(),
        operator_parallel=OperatorConfig(run.layout) if run.layout else OperatorConfig(),
        data_parallel=data_parallel,
        allreduce=allreduce,
    )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each of `runs` in each of `precisions`, on rank 0: the losses of the first `steps` steps
    and the whole model's `weights` (where asked for) after them, as flat lists.
    """
    train = from_arguments(arguments["train"])
    return [
        {
            precision: _measured(comm, train, run, precision, arguments)
            for precision in arguments["precisions"]
        }
        for run in (Run(*given) for given in arguments["runs"])
    ]


def _measured(
    comm: Communicator, train: TrainConfig, run: Run, precision: Any, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    if not run.is_loop:
        return _train(comm, configured(train, run, precision), arguments)
    whole = configured(train, run._replace(schedule=None), precision)
    found = train_delayed(whole, arguments["steps"])
    weights = found.model.state_dict() if arguments["weights"] else {}
    return {"losses": found.losses, "weights": _told(weights)}


def _train(comm: Communicator, config: TrainConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    num_steps = arguments["steps"]
    mesh = build_mesh(config, comm)
    trainer = build_trainer(config, mesh)
    an_epoch = trainer.sampler.steps_per_epoch
    if num_steps > config.epochs * an_epoch:
        raise ConfigError(
            f"steps={num_steps} is more than the run has: {config.epochs} epochs of {an_epoch} "
            "steps; raise train.epochs"
        )
    losses = [step.loss for step in trainer.next_steps(num_steps)]
    weights = (trainer.weights() if arguments["weights"] else None) or {}
    told = _told(weights)
    trainer.close()
    mesh.free()
    return {"losses": losses, "weights": told}


def _told(weights: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in weights.items()}
