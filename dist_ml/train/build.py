"""From a configuration to objects: the only place that knows which class implements which
choice.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh, resolve_sizes
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.same_values import equalise
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import Dataset
from dist_ml.datasets.size import require_share_fits
from dist_ml.errors import ConfigError
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, LayerFactory, Objective, Samples, WholeLayers, build_model
from dist_ml.nn.tuning import linear_factory, tune
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.objective import parallel_objective
from dist_ml.train.build_step import DTYPES, StepParts, Task, pipelined, whole
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.exchange import Setting, build_exchange
from dist_ml.train.guard import Guard
from dist_ml.train.members import check_members
from dist_ml.train.model_reducer import replicated_names
from dist_ml.train.operator_axis import build_layers, check_operator_axis
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.own import Own
from dist_ml.train.pipeline import Pipeline, build_pipeline
from dist_ml.train.pipeline_checks import check_asynchronous, check_axes, check_shared
from dist_ml.train.pipeline_evaluator import PipelineEvaluator
from dist_ml.train.reproducible import (
    by_shards,
    check_reproducible,
    check_reproducible_model,
    check_reproducible_pipeline,
)
from dist_ml.train.step import num_slots
from dist_ml.train.trainer import Trainer

_MOST_STEPS = 1 << 33  # of a run
_STEPS_A_DAY = 1000 * 86_400


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


def build_task(config: TrainConfig, mesh: Mesh, own: Own = Own()) -> Task:  # noqa: B008 - immutable
    """Samples, model and objective. Mistakes that only some ranks can see, like a missing file, are
    raised by all of `mesh.world`. `own`: in place of what the configuration names. Collective.

    Where the mesh has a pipeline axis the model has no weights yet: `build_pipeline` makes this
    rank's.
    """
    with raise_on_all_ranks(mesh.world):
        own.check(config, mesh.sizes)
        dtype = DTYPES[config.precision]
        dataset = own.open(config, dtype)
        objective = own.objective(config, dataset)
    if own.model is not None:
        return Task(dataset, own.blocks(mesh, config.seed, dtype), objective)
    return Task(dataset, *_configured(config, mesh, dataset, objective, dtype))


def _configured(
    config: TrainConfig, mesh: Mesh, dataset: Dataset, objective: Objective, dtype: torch.dtype
) -> tuple[BlockModel, Objective]:
    """The model of our family, and the objective of how its outputs lie. Collective."""
    train = dataset.train
    with raise_on_all_ranks(mesh.world):
        samples = Samples(train.sample_shape, train.num_outputs, train.task)
        layers = _layers(config, mesh, samples)
    with raise_on_all_ranks(mesh.world):
        spread = mesh.sizes["pipeline"] > 1
        with torch.device("meta" if spread else "cpu"):
            model = build_model(config.model, samples, config.seed, dtype, layers)
        if isinstance(layers, ParallelLayers):
            layers.check_names()
            objective = parallel_objective(
                objective, model.output_spread, layers.grid, train.num_outputs
            )
        return model, objective


def _layers(config: TrainConfig, mesh: Mesh, samples: Samples) -> LayerFactory:
    """What makes the model's layers: whole ones, or this rank's parts. Collective."""
    if mesh.sizes["operator"] == 1:
        return WholeLayers(linear_factory(config.kernel))
    return build_layers(config, mesh, samples)


def _check_layers(densities: Mapping[str, float], model: torch.nn.Module) -> None:
    """`ConfigError` for a density of parameters that the model doesn't have."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in densities:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(
                f"sparse.densities.{prefix} is of no parameter; the model's begin with "
                f"{', '.join(dict.fromkeys(name.rpartition('.')[0] for name in names))}"
            )


def _require_end(epochs: int, num_steps: int) -> None:
    """`ConfigError` for a run whose end nobody will see."""
    if num_steps > _MOST_STEPS:
        raise ConfigError(
            f"epochs={epochs} are {num_steps:,} steps, {num_steps // _STEPS_A_DAY:,} days at a "
            f"thousand a second; a run has at most {_MOST_STEPS:,}: lower epochs, or raise "
            "batch_size"
        )


def build_evaluator(
    config: TrainConfig, mesh: Mesh, task: Task, pipeline: Pipeline | None = None
) -> Evaluator | PipelineEvaluator:
    """What evaluating needs, and no more: no optimizer, no reducer, nothing that measures."""
    autocast, shards = config.precision == "bf16", config.reproduce.shards
    if pipeline is not None:
        dtype = DTYPES[config.precision]
        return PipelineEvaluator(
            task.model, task.objective, mesh, pipeline, autocast, dtype, shards
        )
    return Evaluator(task.model, task.objective, mesh.comm("data"), autocast, shards)


def build_trainer(
    config: TrainConfig,
    mesh: Mesh,
    told_to_stop: Callable[[], bool] = lambda: False,
    own: Own = Own(),  # noqa: B008 - immutable
) -> Trainer:
    """Everything that a training run needs; each step asks `told_to_stop`. `own`: in place of what
    the configuration names. Collective.
    """
    with raise_on_all_ranks(mesh.world):
        check_members(config)
        check_axes(config, mesh.sizes)
        check_operator_axis(config, mesh.sizes)
        check_reproducible(config, mesh.sizes)
    config = by_shards(config, mesh.sizes)
    task = build_task(config, mesh, own)
    pipeline = _build_pipeline(config, mesh, task)
    with raise_on_all_ranks(mesh.world):
        _check_layers(config.sparse.densities, task.model)
        check_reproducible_model(config, task.model)
    sampler = GlobalSampler(
        task.dataset.train.num_samples,
        config.batch_size,
        config.seed,
        num_shards=config.reproduce.shards,
    )
    num_steps = config.epochs * sampler.steps_per_epoch
    num_pieces = pipeline.schedule.num_microbatches if pipeline else config.accumulation
    share = -(-sampler.batch_size // (mesh.sizes["data"] * num_pieces))
    with raise_on_all_ranks(mesh.world):
        _require_end(config.epochs, num_steps)
        require_share_fits(share, task.dataset.train, DTYPES[config.precision])
    setting = _setting(config, mesh, task, pipeline, num_steps)
    exchange = build_exchange(setting)
    tune(task.model, {share * task.model.rows_per_sample}, mesh.world)
    updater = exchange.updater(build_lr_schedule(config.lr_schedule, exchange.optimizer, num_steps))
    phases = Phases()
    guard = Guard(mesh.world, config.clip_norm, config.nonfinite)
    parts = StepParts(
        config, mesh, task, sampler, exchange.reducer, guard, phases, exchange.versions
    )
    work = pipelined(parts, pipeline) if pipeline else whole(parts)
    buffers = task.model.held_buffers()
    alike = partial(equalise, list(buffers.values()), setting.data)
    return Trainer(
        mesh=mesh,
        model=task.model,
        parameters=setting.named,
        untrained={**task.model.held_frozen(), **buffers},
        objective=task.objective,
        dataset=task.dataset,
        sampler=sampler,
        train_step=work.train_step(parts, updater, told_to_stop, alike),
        reducer=work.reducer,
        updater=updater,
        evaluator=build_evaluator(config, mesh, task, pipeline),
        phases=phases,
        pipeline=pipeline,
    )


def _setting(
    config: TrainConfig, mesh: Mesh, task: Task, pipeline: Pipeline | None, num_steps: int
) -> Setting:
    """What is exchanged among which ranks. Collective."""
    shared = mesh.sizes["pipeline"] * mesh.sizes["operator"] > 1
    return Setting(
        config,
        task.model.held_parameters(),
        num_slots(task.objective),
        pipeline.replicas if pipeline else mesh.comm("data"),
        num_steps,
        "MULTIPLE" if shared else "SERIALIZED",
        replicated_names(task.model, mesh.sizes["operator"]),
        pipeline.schedule.weight_versions if pipeline else 1,
        [name for name, _ in task.model.named_parameters(remove_duplicate=False)],
    )


def _build_pipeline(config: TrainConfig, mesh: Mesh, task: Task) -> Pipeline | None:
    if mesh.sizes["pipeline"] == 1:
        return None
    sample = task.dataset.train.batch(np.zeros(1, np.int64)).inputs
    pipeline = build_pipeline(config, mesh, task.model, sample)
    with raise_on_all_ranks(mesh.world):
        check_shared(config, pipeline)
        check_asynchronous(config, pipeline.schedule, mesh.sizes)
        check_reproducible_pipeline(config, pipeline, task.model)
    return pipeline
