"""From a configuration to objects: the only place that knows which class implements which
choice.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh, resolve_sizes
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import open_dataset
from dist_ml.datasets.dataset import Dataset
from dist_ml.datasets.size import require_share_fits
from dist_ml.errors import ConfigError
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, Objective, build_model, choose_objective
from dist_ml.nn.tuning import linear_factory, tune
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Action, Kind, one_stage
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.exchange import Setting, build_exchange
from dist_ml.train.guard import Guard
from dist_ml.train.local_stage import LocalStage
from dist_ml.train.members import check_members
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.pipeline import Pipeline, build_pipeline
from dist_ml.train.pipeline_evaluator import PipelineEvaluator
from dist_ml.train.pipeline_step import PipelineReducer, PipelineStages, StepBatches
from dist_ml.train.step import TrainStep
from dist_ml.train.trainer import Trainer
from dist_ml.train.updater import Updater

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}


class Task(NamedTuple):
    """What is learned from what: all that training and evaluating have in common."""

    dataset: Dataset
    model: BlockModel
    objective: Objective


def build_mesh(config: TrainConfig, world: Communicator) -> Mesh:
    """The mesh of the configuration over all ranks of `world`. Collective; errors are raised by all
    ranks.
    """
    sizes = {axis: getattr(config.mesh, axis) for axis in ("data", "pipeline", "operator")}
    with raise_on_all_ranks(world):
        _check_ranks(config.ranks, world.size)
        resolved = resolve_sizes(sizes, world.size)
    world.traffic.timing = config.comm.timing
    return Mesh(world.with_checks() if config.comm.checked else world, resolved)


def _check_ranks(wanted: int | None, started: int) -> None:
    if wanted not in (None, started):
        raise ConfigError(
            f"ranks={wanted}, but {started} rank{'s were' if started > 1 else ' was'} started; "
            f"start {wanted} (dist-ml launch -n {wanted} train …), or leave ranks out"
        )


def build_task(config: TrainConfig, mesh: Mesh) -> Task:
    """Samples, model and objective. Mistakes that only some ranks can see, like a missing file, are
    raised by all of `mesh.world`. Collective.

    Where the mesh has a pipeline axis the model has no weights yet: `build_pipeline` makes this
    rank's.
    """
    with raise_on_all_ranks(mesh.world):
        dtype = DTYPES[config.precision]
        dataset = open_dataset(config.data, dtype)
        train = dataset.train
        spread = mesh.sizes["pipeline"] > 1
        with torch.device("meta" if spread else "cpu"):
            model = build_model(
                config.model,
                train.num_features,
                train.num_outputs,
                config.seed,
                dtype,
                linear_factory(config.kernel),
            )
        return Task(dataset, model, choose_objective(config.model, train.task))


def _check_layers(densities: Mapping[str, float], model: torch.nn.Module) -> None:
    """`ConfigError` for a density of parameters that the model doesn't have."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in densities:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(
                f"sparse.densities.{prefix} is of no parameter; the model's begin with "
                f"{', '.join(dict.fromkeys(name.rpartition('.')[0] for name in names))}"
            )


def build_evaluator(
    config: TrainConfig, mesh: Mesh, task: Task, pipeline: Pipeline | None = None
) -> Evaluator | PipelineEvaluator:
    """What evaluating needs, and no more: no optimizer, no reducer, nothing that measures."""
    autocast = config.precision == "bf16"
    if pipeline is not None:
        dtype = DTYPES[config.precision]
        return PipelineEvaluator(task.model, task.objective, mesh, pipeline, autocast, dtype)
    return Evaluator(task.model, task.objective, mesh.comm("data"), autocast)


def build_trainer(config: TrainConfig, mesh: Mesh) -> Trainer:
    """Everything that a training run needs. Collective."""
    with raise_on_all_ranks(mesh.world):
        check_members(config)
        _check_axes(config, mesh)
    task = build_task(config, mesh)
    pipeline = _build_pipeline(config, mesh, task)
    with raise_on_all_ranks(mesh.world):
        _check_layers(config.sparse.densities, task.model)
    sampler = GlobalSampler(task.dataset.train.num_samples, config.batch_size, config.seed)
    num_steps = config.epochs * sampler.steps_per_epoch
    num_pieces = pipeline.schedule.num_microbatches if pipeline else config.accumulation
    share = -(-sampler.batch_size // (mesh.sizes["data"] * num_pieces))
    with raise_on_all_ranks(mesh.world):
        require_share_fits(share, task.dataset.train, DTYPES[config.precision])
    own = {name: p for name, p in task.model.named_parameters() if not p.is_meta}
    slots, replicas = task.objective.num_slots, pipeline.replicas if pipeline else mesh.comm("data")
    level = "MULTIPLE" if pipeline else "SERIALIZED"
    exchange = build_exchange(Setting(config, own, slots, replicas, num_steps, level))
    tune(task.model, {-(-config.batch_size // (mesh.sizes["data"] * num_pieces))}, mesh.world)
    lr_schedule = build_lr_schedule(config.lr_schedule, exchange.optimizer, num_steps)
    updater = Updater(exchange.optimizer, lr_schedule, exchange.gather, exchange.averager)
    phases = Phases()
    parts = _StepParts(config, mesh, task, sampler, exchange.reducer, phases)
    stages, executor, reducer = _pipelined(parts, pipeline) if pipeline else _whole(parts)
    guard = Guard(mesh.world, config.clip_norm, config.nonfinite)
    return Trainer(
        mesh=mesh,
        model=task.model,
        objective=task.objective,
        dataset=task.dataset,
        sampler=sampler,
        train_step=TrainStep(executor, stages, reducer, guard, updater, phases),
        reducer=reducer,
        updater=updater,
        evaluator=build_evaluator(config, mesh, task, pipeline),
        phases=phases,
        pipeline=pipeline,
    )


def _check_axes(config: TrainConfig, mesh: Mesh) -> None:
    """`ConfigError` for keys that this mesh has no use for, or can't serve."""
    if mesh.sizes["pipeline"] == 1:
        if config.pipeline != PipelineConfig():
            raise ConfigError(
                "pipeline.* has no effect with mesh.pipeline=1: leave it out, or set mesh.pipeline"
            )
        return
    if config.accumulation > 1:
        raise ConfigError(
            f"accumulation={config.accumulation} has no effect with "
            f"mesh.pipeline={mesh.sizes['pipeline']}: a pipeline's pieces of a batch are "
            f"pipeline.microbatches; set accumulation=1 pipeline.microbatches={config.accumulation}"
        )
    if config.data_parallel.name in ("periodic", "daso"):
        raise ConfigError(
            f"data_parallel={config.data_parallel.name} is not built for mesh.pipeline="
            f"{mesh.sizes['pipeline']}; use dense, zero1 or zero2"
        )


def _build_pipeline(config: TrainConfig, mesh: Mesh, task: Task) -> Pipeline | None:
    if mesh.sizes["pipeline"] == 1:
        return None
    sample = task.dataset.train.batch(np.zeros(1, np.int64)).inputs
    pipeline = build_pipeline(config.pipeline, mesh, task.model, sample)
    dense = config.data_parallel.name == "dense" and config.sparse.allreduce == "none"
    with raise_on_all_ranks(mesh.world):
        if pipeline.shared and not dense:
            raise ConfigError(
                f"{pipeline.shared[0][0].name} is used by several stages, whose gradients are only "
                "summed with data_parallel=dense sparse=none; use these, or stages that keep its "
                "users together (pipeline.stages)"
            )
    return pipeline


class _StepParts(NamedTuple):
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


def _whole(parts: _StepParts) -> tuple[LocalStage, Executor, GradientReducer]:
    """All layers on each rank: one stage."""
    accumulation = parts.config.accumulation
    stage = LocalStage(
        parts.task.model,
        parts.task.objective,
        parts.task.dataset.train,
        parts.sampler,
        parts.mesh.comm("data"),
        parts.reducer,
        parts.phases,
        accumulation,
        parts.autocast,
    )
    methods: dict[Kind, Callable[[Action], None]] = {"F": stage.forward, "B": stage.backward}
    return stage, Executor(one_stage(accumulation).actions[0], methods), parts.reducer


def _pipelined(
    parts: _StepParts, pipeline: Pipeline
) -> tuple[PipelineStages, Executor, GradientReducer]:
    """This rank's stages of a pipeline."""
    schedule, task = pipeline.schedule, parts.task
    reducer = PipelineReducer(parts.reducer, pipeline)
    batches = StepBatches(
        task.model,
        task.objective,
        task.dataset.train,
        parts.sampler,
        parts.mesh.comm("data"),
        schedule.num_microbatches,
        reducer.slots,
    )
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
