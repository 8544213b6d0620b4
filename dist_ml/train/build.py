"""From a configuration to a mesh, a task, the stages of a pipeline, and a trainer of them."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh, resolve_sizes
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import Dataset
from dist_ml.datasets.size import require_share_fits
from dist_ml.errors import ConfigError
from dist_ml.models import BlockModel, LayerFactory, Objective, Samples, WholeLayers, build_model
from dist_ml.nn.tuning import linear_factory, tune
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.objective import parallel_objective
from dist_ml.train.assemble import assemble
from dist_ml.train.build_step import DTYPES, Task
from dist_ml.train.members import check_members
from dist_ml.train.microbatches import largest_microbatch
from dist_ml.train.operator_axis import build_layers, check_operator_axis
from dist_ml.train.own import Own
from dist_ml.train.pipeline import Pipeline, build_pipeline
from dist_ml.train.pipeline_checks import check_asynchronous, check_axes, check_shared
from dist_ml.train.recovery_checks import check_recovery
from dist_ml.train.reproducible import (
    by_shards,
    check_reproducible,
    check_reproducible_model,
    check_reproducible_pipeline,
)
from dist_ml.train.rerun import check_rerun
from dist_ml.train.step_trace import require_traced
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
        num_samples = largest_microbatch(config, mesh.sizes, train.num_samples)
        layers = _layers(config, mesh, samples, num_samples)
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


def _layers(config: TrainConfig, mesh: Mesh, samples: Samples, num_samples: int) -> LayerFactory:
    """What makes the model's layers: whole ones, or this rank's parts. Collective."""
    if mesh.sizes["operator"] == 1:
        return WholeLayers(linear_factory(config.kernel))
    return build_layers(config, mesh, samples, num_samples)


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


def checked(config: TrainConfig, sizes: Mapping[str, int], own: Own = Own()) -> TrainConfig:  # noqa: B008
    """`config` as a run on a mesh of these sizes takes it; `ConfigError` for what can't be told by
    its model alone.
    """
    check_members(config)
    check_axes(config, sizes)
    check_recovery(config, sizes, own)
    check_operator_axis(config, sizes)
    check_reproducible(config, sizes)
    return by_shards(config, sizes)


def build_trainer(
    config: TrainConfig,
    mesh: Mesh,
    told_to_stop: Callable[[], bool] = lambda: False,
    own: Own = Own(),  # noqa: B008 - immutable
    agree: Callable[[], None] = lambda: None,
) -> Trainer:
    """Everything that a training run needs; each step asks `told_to_stop`, and calls `agree` before
    it uses its sums. `own`: in place of what the configuration names. Kernels are tuned before
    anything is timed. Collective.
    """
    with raise_on_all_ranks(mesh.world):
        config = checked(config, mesh.sizes, own)
    task = build_task(config, mesh, own)
    train = task.dataset.train
    shards = config.reproduce.shards
    sampler = GlobalSampler(train.num_samples, config.batch_size, config.seed, num_shards=shards)
    share = largest_microbatch(config, mesh.sizes, train.num_samples)
    with raise_on_all_ranks(mesh.world):
        _check_layers(config.sparse.densities, task.model)
        _require_end(config.epochs, config.epochs * sampler.steps_per_epoch)
        if config.trace.enabled:
            require_traced(config.trace.skip, config.epochs * sampler.steps_per_epoch)
        require_share_fits(share, train, DTYPES[config.precision])
    tune(task.model, {share * task.model.rows_per_sample}, mesh.world)
    pipeline = _build_pipeline(config, mesh, task, share)
    with raise_on_all_ranks(mesh.world):
        check_reproducible_model(config, task.model)
        check_rerun(config, mesh.sizes, task.model)
    return assemble(config, mesh, task, sampler, pipeline, told_to_stop, agree)


def _build_pipeline(
    config: TrainConfig, mesh: Mesh, task: Task, num_samples: int
) -> Pipeline | None:
    if mesh.sizes["pipeline"] == 1:
        return None
    sample = task.dataset.train.batch(np.zeros(1, np.int64)).inputs
    pipeline = build_pipeline(config, mesh, task.model, sample, num_samples)
    with raise_on_all_ranks(mesh.world):
        check_shared(config, pipeline)
        check_asynchronous(config, pipeline.schedule, mesh.sizes)
        check_reproducible_pipeline(config, pipeline, task.model)
    return pipeline
