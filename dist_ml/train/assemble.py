"""From a task, wherever its layers are, to its trainer: the only place that knows which class
implements which choice of a training step.
"""

from collections.abc import Callable
from functools import partial

from dist_ml.comm.mesh import Mesh
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.same_values import equalise
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.measure.timer import Phases, RecordedPhases
from dist_ml.train.build_step import DTYPES, StepParts, Task, pipelined, whole
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.exchange import Setting, build_exchange
from dist_ml.train.guard import Guard
from dist_ml.train.model_reducer import replicated_names
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.pipeline_evaluator import PipelineEvaluator
from dist_ml.train.step import num_slots
from dist_ml.train.trainer import Trainer


def assemble(
    config: TrainConfig,
    mesh: Mesh,
    task: Task,
    sampler: GlobalSampler,
    pipeline: Pipeline | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
    agree: Callable[[], None] = lambda: None,
) -> Trainer:
    """What trains `task` on the batches of `sampler`, each rank its stages of `pipeline`, or the
    whole model. Collective.
    """
    num_steps = config.epochs * sampler.steps_per_epoch
    setting = _setting(config, mesh, task, pipeline, num_steps)
    exchange = build_exchange(setting)
    updater = exchange.updater(build_lr_schedule(config.lr_schedule, exchange.optimizer, num_steps))
    phases = RecordedPhases() if config.trace.enabled else Phases()
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
        train_step=work.train_step(parts, updater, told_to_stop, alike, agree),
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
