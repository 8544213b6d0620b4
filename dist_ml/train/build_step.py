"""What the actions of a step are done by: the whole model on each rank, or stages of a pipeline."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets.dataset import Dataset
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, Objective
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.post_validation import (
    ahead_of_validation,
    gains_by_post_validation,
)
from dist_ml.pipeline_parallel.schedule import Action, Kind, one_stage
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import from_empty
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.guard import Guard
from dist_ml.train.local_stage import LocalStage
from dist_ml.train.model_reducer import ModelReducer
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.pipeline_step import PipelineStages
from dist_ml.train.post_validation import PostValidation
from dist_ml.train.rerun import RerunReducer
from dist_ml.train.slot_relay import SlotRelay
from dist_ml.train.step import TrainStep
from dist_ml.train.step_batches import StepBatches
from dist_ml.train.updater import Updater
from dist_ml.train.weight_versions import WeightVersions

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}


class Task(NamedTuple):
    """What is learned from what: all that training and evaluating have in common."""

    dataset: Dataset
    model: BlockModel
    objective: Objective


class StepParts(NamedTuple):
    """What a step is made of, wherever its layers are."""

    config: TrainConfig
    mesh: Mesh
    task: Task
    sampler: GlobalSampler
    reducer: GradientReducer
    guard: Guard
    phases: Phases
    versions: WeightVersions | None = None  # of an asynchronous schedule

    @property
    def autocast(self) -> bool:
        return self.config.precision == "bf16"


class StepWork(NamedTuple):
    """What of a `TrainStep` depends on where the layers are."""

    executor: Executor
    stages: LocalStage | PipelineStages
    reducer: GradientReducer
    post_validation: PostValidation | None = None

    def train_step(
        self,
        parts: StepParts,
        updater: Updater,
        told_to_stop: Callable[[], bool],
        equalise_buffers: Callable[[], None],
        agree: Callable[[], None],
    ) -> TrainStep:
        return TrainStep(
            self.executor,
            self.stages,
            self.reducer,
            parts.guard,
            updater,
            parts.phases,
            self.post_validation,
            told_to_stop,
            equalise_buffers,
            agree,
        )


def whole(parts: StepParts) -> StepWork:
    """All layers on each rank: one stage."""
    accumulation, reducer = parts.config.accumulation, parts.reducer
    if parts.mesh.sizes["operator"] > 1:
        reducer = _model_reducer(parts, None)
    checked = None
    if parts.config.fault.rerun:
        data = parts.mesh.comm("data")
        reducer = checked = RerunReducer(reducer, data, parts.config.fault, accumulation)
    batches = _batches(parts, accumulation)
    model, autocast = parts.task.model, parts.autocast
    stage = LocalStage(model, batches, reducer, parts.phases, accumulation, autocast)
    methods: dict[Kind, Callable[[Action], None]] = {"F": stage.forward, "B": stage.backward}
    methods = _telling(reducer, methods)
    executor = Executor(one_stage(accumulation).actions[0], methods)
    if checked is not None:

        def compute(shift: int) -> None:
            stage.again(shift)
            executor.run(0)

        checked.compute = compute
    return StepWork(executor, stage, reducer)


def pipelined(parts: StepParts, pipeline: Pipeline) -> StepWork:
    """This rank's stages of a pipeline."""
    schedule, versions, relay = pipeline.schedule, parts.versions, None
    if schedule.is_asynchronous:
        schedule = from_empty(schedule)
        relay = SlotRelay(parts.mesh.comm("pipeline", "operator"))
    reducer = _model_reducer(parts, pipeline, relay)
    batches = _batches(parts, schedule.num_microbatches)
    dtype = DTYPES[parts.config.precision]
    messages = StageMessages(pipeline.comm, schedule, pipeline.stages, pipeline.shapes, dtype)
    actions = schedule.actions[pipeline.comm.rank]
    runner = StageRunner(
        pipeline.stages,
        actions,
        messages,
        batches,
        parts.phases,
        autocast=parts.autocast,
        recompute=parts.config.pipeline.recompute,
        final=reducer.start,
    )
    methods = _telling(reducer, runner.methods)
    if versions is not None:
        methods = versions.selecting(methods, schedule.num_microbatches)
    stages, executor = PipelineStages(runner, batches, relay), Executor(actions, methods)
    post_validation = _post_validation(parts, pipeline, stages, executor)
    return StepWork(executor, stages, reducer, post_validation)


def _telling(
    reducer: GradientReducer, methods: Mapping[Kind, Callable[[Action], None]]
) -> dict[Kind, Callable[[Action], None]]:
    """`methods`, after which `reducer` is told of backward passes, where it wants to be."""
    tell = reducer.after_backward

    def telling(method: Callable[[Action], None]) -> Callable[[Action], None]:
        def run(action: Action) -> None:
            method(action)
            tell(action.microbatch)

        return run

    return {k: method if k == "F" else telling(method) for k, method in methods.items()}


def _post_validation(
    parts: StepParts, pipeline: Pipeline, stages: PipelineStages, executor: Executor
) -> PostValidation | None:
    """What begins steps early, where `pipeline.validate` is after, or auto and that saves time:
    under a schedule that gains by it, with no parameter shared by stages, whose ranks wait for each
    other at the end of each step. Asynchronous schedules have no such end.
    """
    schedule, validate = pipeline.schedule, parts.config.pipeline.validate
    if validate == "before" or schedule.is_asynchronous:
        return None
    if validate == "auto" and (pipeline.shared or not gains_by_post_validation(schedule)):
        return None
    ahead = ahead_of_validation(schedule)
    alone = parts.mesh.sizes["operator"] == 1
    return PostValidation(stages, executor, ahead, pipeline.comm.rank, looks=alone)


def _model_reducer(
    parts: StepParts, pipeline: Pipeline | None, relay: SlotRelay | None = None
) -> ModelReducer:
    with_norm = parts.guard.reads_norm
    return ModelReducer(parts.reducer, parts.mesh, parts.task.model, pipeline, with_norm, relay)


def _batches(parts: StepParts, num_microbatches: int) -> StepBatches:
    return StepBatches(
        parts.task.model,
        parts.task.objective,
        parts.task.dataset.train,
        parts.sampler,
        parts.mesh.comm("data"),
        num_microbatches,
        parts.reducer.slots_of,
    )
