"""The ranks' part of `dist-ml bench pipeline_validation`: consecutive training steps of stages that
sleep, with clipping and `nonfinite=skip`.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from dist_ml.bench.pipeline_part import Seconds, make, sleeping_stages
from dist_ml.bench.sleeping_model import OneSample
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.data_parallel.dense_reducer import DenseReducer
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.datasets.dataset import Batch
from dist_ml.measure.compare import alternate, seconds_per_call
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.post_validation import ahead_of_validation
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.guard import Guard
from dist_ml.train.model_reducer import ModelReducer
from dist_ml.train.optimizer import LRSchedule
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.pipeline_step import PipelineStages
from dist_ml.train.post_validation import PostValidation
from dist_ml.train.step import Step, TrainStep
from dist_ml.train.updater import Updater

_CLIP_NORM = 1e4
_LARGE = 1e6  # what the loss of a step that is clipped is multiplied with


class ClippedSteps(OneSample):
    """Micro-batches of one sample, whose gradients are too long in some steps: number `clipped - 1`
    of each `clipped`; 0: in none.
    """

    def __init__(self, num_microbatches: int, clipped: int) -> None:
        self._num_microbatches, self._clipped = num_microbatches, clipped
        self._factor = 1.0

    def begin(
        self,
        number: int,  # noqa: ARG002
        epoch: int,  # noqa: ARG002
        index: int,
        following: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> tuple[int, list[int]]:
        is_clipped = self._clipped and (index + 1) % self._clipped == 0
        self._factor = _LARGE if is_clipped else 1.0
        return self._num_microbatches, [1] * self._num_microbatches

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool) -> torch.Tensor:
        return self._factor * super().loss(outputs, batch, count)


def train_step(
    comm: Communicator, schedule: Schedule, seconds: Seconds, clipped: int, validate: str
) -> TrainStep:
    """Steps of `schedule` on the ranks of `comm`, validated before or after their update."""
    mesh = Mesh(comm, {"data": 1, "pipeline": comm.size, "operator": 1})
    model, stages, shapes = sleeping_stages(comm.rank, schedule, seconds)
    axis = mesh.comm("pipeline")
    pipeline = Pipeline(schedule, stages, shapes, [], axis, mesh.comm("data"), num_copies=1)
    reducer, updater = _reducer(model, mesh, pipeline)
    messages = StageMessages(axis, schedule, stages, shapes, torch.float32)
    batches = ClippedSteps(schedule.num_microbatches, clipped)
    actions = schedule.actions[comm.rank]
    runner = StageRunner(stages, actions, messages, batches, Phases(), final=reducer.start)
    executor, own = Executor(actions, runner.methods), PipelineStages(runner, batches)
    ahead = ahead_of_validation(schedule)
    after = PostValidation(own, executor, ahead, comm.rank, looks=True)
    guard = Guard(comm, _CLIP_NORM, "skip")
    early = after if validate == "after" else None
    return TrainStep(executor, own, reducer, guard, updater, Phases(), early)


def _reducer(model: BlockModel, mesh: Mesh, pipeline: Pipeline) -> tuple[ModelReducer, Updater]:
    """What sums gradients, and an optimizer with a state, that leaves the weights at zero."""
    own = [parameter for parameter in model.parameters() if not parameter.is_meta]
    allreduce = family.make("native", mesh.comm("data"))
    slots = 2  # the loss, and how many ranks were told to stop
    inner = DenseReducer(FlatGradients(own, slots), allreduce)
    optimizer = torch.optim.SGD(own, lr=0.0, momentum=0.9)
    updater = Updater(optimizer, LRSchedule(optimizer, lambda _: 1.0))
    return ModelReducer(inner, mesh, model, pipeline), updater


def consecutive(step: TrainStep, indices: Sequence[int]) -> list[Step]:
    """One step after the other, each known to the one before."""
    following = [(0, index) for index in indices[1:]]
    return [step.run(0, *both) for both in zip_longest(indices, following)]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Sequence[float]]:
    """Seconds a step in each round, of each of `candidates`: schedule, validate, clipped."""
    seconds: Seconds = tuple(arguments["seconds"])
    steps = range(arguments["steps"])
    calls = {}
    for number, (name, validate, clipped) in enumerate(arguments["candidates"]):
        schedule = make(name, comm.size, arguments["microbatches"])
        step = train_step(comm, schedule, seconds, clipped, validate)
        consecutive(step, steps[:2])  # the optimizer's state, and code that runs cold

        def call(step: TrainStep = step) -> float:
            return seconds_per_call(comm, lambda: consecutive(step, steps)) / len(steps)

        calls[str(number)] = call
    return list(alternate(calls, arguments["rounds"]).values())
