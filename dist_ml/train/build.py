"""From a configuration to objects: the only place that knows which class implements which
choice.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh, resolve_sizes
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import open_dataset
from dist_ml.datasets.dataset import Dataset
from dist_ml.datasets.size import require_share_fits
from dist_ml.errors import ConfigError
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, Objective, build_model, choose_objective
from dist_ml.nn.tuning import linear_factory, tune
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.schedule import one_stage
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.exchange import Setting, build_exchange
from dist_ml.train.guard import Guard
from dist_ml.train.local_stage import LocalStage
from dist_ml.train.members import check_members
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.step import TrainStep
from dist_ml.train.trainer import Trainer
from dist_ml.train.updater import Updater

_MOST_STEPS = 1 << 33  # of a run
_STEPS_A_DAY = 1000 * 86_400

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
    """
    with raise_on_all_ranks(mesh.world):
        dtype = DTYPES[config.precision]
        dataset = open_dataset(config.data, dtype)
        train = dataset.train
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


def _require_end(epochs: int, num_steps: int) -> None:
    """`ConfigError` for a run whose end nobody will see."""
    if num_steps > _MOST_STEPS:
        raise ConfigError(
            f"epochs={epochs} are {num_steps:,} steps, {num_steps // _STEPS_A_DAY:,} days at a "
            f"thousand a second; a run has at most {_MOST_STEPS:,}: lower epochs, or raise "
            "batch_size"
        )


def build_evaluator(config: TrainConfig, mesh: Mesh, task: Task) -> Evaluator:
    """What evaluating needs, and no more: no optimizer, no reducer, nothing that measures."""
    autocast = config.precision == "bf16"
    return Evaluator(task.model, task.objective, mesh.comm("data"), autocast)


def build_trainer(config: TrainConfig, mesh: Mesh) -> Trainer:
    """Everything that a training run needs. Collective."""
    with raise_on_all_ranks(mesh.world):
        check_members(config)
    task = build_task(config, mesh)
    with raise_on_all_ranks(mesh.world):
        _check_layers(config.sparse.densities, task.model)
    data, phases = mesh.comm("data"), Phases()
    sampler = GlobalSampler(task.dataset.train.num_samples, config.batch_size, config.seed)
    num_steps = config.epochs * sampler.steps_per_epoch
    share = -(-sampler.batch_size // (data.size * config.accumulation))
    with raise_on_all_ranks(mesh.world):
        _require_end(config.epochs, num_steps)
        require_share_fits(share, task.dataset.train, DTYPES[config.precision])
    slots = task.objective.num_slots
    exchange = build_exchange(Setting(config, task.model, slots, data, num_steps))
    tune(task.model, {-(-config.batch_size // (data.size * config.accumulation))}, data)
    lr_schedule = build_lr_schedule(config.lr_schedule, exchange.optimizer, num_steps)
    updater = Updater(exchange.optimizer, lr_schedule, exchange.gather, exchange.averager)
    stage = LocalStage(
        task.model,
        task.objective,
        task.dataset.train,
        sampler,
        data,
        exchange.reducer,
        phases,
        config.accumulation,
        config.precision == "bf16",
    )
    actions = one_stage(config.accumulation).actions[0]
    executor = Executor(actions, {"F": stage.forward, "B": stage.backward})
    guard = Guard(mesh.world, config.clip_norm, config.nonfinite)
    return Trainer(
        mesh=mesh,
        model=task.model,
        objective=task.objective,
        dataset=task.dataset,
        sampler=sampler,
        train_step=TrainStep(executor, stage, exchange.reducer, guard, updater, phases),
        reducer=exchange.reducer,
        updater=updater,
        evaluator=build_evaluator(config, mesh, task),
        phases=phases,
    )
