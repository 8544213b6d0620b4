"""What the actions of a step are done by: the whole model on each rank, or stages of a pipeline."""

from collections.abc import Callable
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
from dist_ml.pipeline_parallel.schedule import Action, Kind, one_stage
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.local_stage import LocalStage
from dist_ml.train.model_reducer import ModelReducer
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.pipeline_step import PipelineStages
from dist_ml.train.step_batches import StepBatches

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
    phases: Phases

    @property
    def autocast(self) -> bool:
        return self.config.precision == "bf16"


def whole(parts: StepParts) -> tuple[LocalStage, Executor, GradientReducer]:
    """All layers on each rank: one stage."""
    accumulation, reducer = parts.config.accumulation, parts.reducer
    if parts.mesh.sizes["operator"] > 1:
        reducer = ModelReducer(reducer, parts.mesh, parts.task.model, None)
    batches = _batches(parts, accumulation)
    model, autocast = parts.task.model, parts.autocast
    stage = LocalStage(model, batches, reducer, parts.phases, accumulation, autocast)
    methods: dict[Kind, Callable[[Action], None]] = {"F": stage.forward, "B": stage.backward}
    return stage, Executor(one_stage(accumulation).actions[0], methods), reducer


def pipelined(
    parts: StepParts, pipeline: Pipeline
) -> tuple[PipelineStages, Executor, GradientReducer]:
    """This rank's stages of a pipeline."""
    schedule = pipeline.schedule
    reducer = ModelReducer(parts.reducer, parts.mesh, parts.task.model, pipeline)
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
    return PipelineStages(runner, batches), Executor(actions, runner.methods), reducer


def _batches(parts: StepParts, num_microbatches: int) -> StepBatches:
    return StepBatches(
        parts.task.model,
        parts.task.objective,
        parts.task.dataset.train,
        parts.sampler,
        parts.mesh.comm("data"),
        num_microbatches,
        parts.reducer.slots,
    )
