"""The ranks' part of `dist-ml bench pipeline_validation`: consecutive training steps of stages that
sleep, of which some are clipped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from dist_ml.bench.configured import from_arguments
from dist_ml.bench.pipeline_part import Seconds, make, sleeping_stages
from dist_ml.bench.sleeping_model import WIDTH
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.data import Task as TaskName
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets.dataset import Batch, Dataset, Ids
from dist_ml.measure.compare import alternate, seconds_per_call
from dist_ml.models import Objective
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.train.assemble import assemble
from dist_ml.train.build_step import Task
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.trainer import Trainer

_LARGE = 1e6  # what the loss of a step that is clipped is multiplied with


class SamplesOfZeros:
    """`num_steps` batches of `batch_size` samples of zeros. The targets are what their loss is
    multiplied with: `_LARGE` in batch number `clipped - 1` of each `clipped`; 0: in none.
    """

    num_features, sample_shape, num_outputs = WIDTH, (WIDTH,), WIDTH
    task: TaskName = "regression"

    def __init__(self, num_steps: int, batch_size: int, clipped: int) -> None:
        self.num_samples = num_steps * batch_size
        self._batch_size, self._clipped = batch_size, clipped

    def batch(self, ids: Ids) -> Batch:
        factors = torch.ones(len(ids))
        if self._clipped:
            number = torch.from_numpy(ids) // self._batch_size
            factors[(number + 1) % self._clipped == 0] = _LARGE
        return Batch(torch.zeros(len(ids), WIDTH), factors, ids, len(ids))


def scaled_sum(outputs: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The sum of outputs [b, WIDTH], those of each sample times its factor [b]."""
    return (outputs.sum(1) * factors).sum()


def trainer_of(
    comm: Communicator,
    train: TrainConfig,
    schedule: Schedule,
    seconds: Seconds,
    num_steps: int,
    clipped: int,
    validate: str,
) -> Trainer:
    """Trains with `schedule` on the ranks of `comm`, in epochs of `num_steps` whose steps are
    validated before or after their update. Collective.
    """
    mesh = Mesh(comm, {"data": 1, "pipeline": comm.size, "operator": 1})
    n = schedule.num_microbatches
    model, stages, shapes = sleeping_stages(comm.rank, schedule, seconds)
    pipeline = Pipeline(
        schedule, stages, shapes, [], mesh.comm("pipeline"), mesh.comm("data"), num_copies=1
    )
    config = dataclasses.replace(
        train,
        batch_size=n,
        mesh=MeshConfig(1, comm.size, 1),
        pipeline=PipelineConfig(schedule.name, n, validate=validate),  # type: ignore[arg-type]
    )
    samples = SamplesOfZeros(num_steps, n, clipped)
    task = Task(Dataset("zeros", samples, samples), model, Objective(scaled_sum))
    sampler = GlobalSampler(samples.num_samples, n, config.seed, shuffle=False)
    return assemble(config, mesh, task, sampler, pipeline)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Sequence[float]]:
    """Seconds a step in each round, of each of `candidates`: schedule, validate, clipped."""
    train = from_arguments(arguments["train"])
    num_steps: int = arguments["steps"]
    seconds: Seconds = tuple(arguments["seconds"])
    calls = {}
    for number, (name, validate, clipped) in enumerate(arguments["candidates"]):
        schedule = make(name, comm.size, arguments["microbatches"])
        trainer = trainer_of(comm, train, schedule, seconds, num_steps, clipped, validate)
        list(islice(trainer.epoch(0), 2))  # the optimizer's state, and code that runs cold

        def call(trainer: Trainer = trainer) -> float:
            return seconds_per_call(comm, lambda: list(trainer.epoch(0))) / num_steps

        calls[str(number)] = call
    return list(alternate(calls, arguments["rounds"]).values())
