"""Which key is used in which combination of the others: one table. A key that is set where nothing
reads it is refused, since whoever set it expects something of it.

A key counts as set when its value is not its field's default. What a member of a family reads is
its own to say (`reads` in the family's dict), so a new member needs no line here.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from dist_ml.config.convert import show
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError


class Row(NamedTuple):
    """Keys that have an effect under one condition.

    `holds` is what the other keys must be like; with `by_member`, one of the chosen members of the
    families must read the key, too. `otherwise` says where there is no effect, and may name fields
    of `config`; `remedy` what to change instead.
    """

    keys: tuple[str, ...]
    otherwise: str
    remedy: str
    holds: Callable[[TrainConfig], bool] = lambda _config: True
    by_member: bool = False


def _sums_densely(config: TrainConfig) -> bool:
    return config.sparse.allreduce in ("none", "auto")


_EXCHANGE = "data_parallel={config.data_parallel.name} sparse={config.sparse.allreduce}"
_DENSE = "use data_parallel=dense sparse=none"

TABLE: tuple[Row, ...] = (
    Row(
        ("sparse.allreduce",),
        "with data_parallel={config.data_parallel.name}, which exchanges densely",
        "use data_parallel=dense",
        by_member=True,
    ),
    Row(
        ("reproduce.shards",),
        "with data_parallel={config.data_parallel.name} sparse={config.sparse.allreduce}, which "
        "sum in an order of their own",
        "use data_parallel=dense sparse=none",
        lambda config: config.sparse.allreduce == "none",
        by_member=True,
    ),
    Row(
        ("allreduce.name",),
        f"with {_EXCHANGE}",
        f"{_DENSE}, or data_parallel=periodic",
        _sums_densely,
        by_member=True,
    ),
    Row(
        ("allreduce.wire",),
        f"with {_EXCHANGE} allreduce={{config.allreduce.name}}, which sends numbers as they are",
        f"{_DENSE} allreduce=ring, rabenseifner or hierarchical",
        _sums_densely,
        by_member=True,
    ),
    Row(("allreduce.overlap",), f"with {_EXCHANGE}", _DENSE, _sums_densely, by_member=True),
    Row(
        ("allreduce.bucket_bytes",),
        f"with {_EXCHANGE} allreduce.overlap={{config.allreduce.overlap}}",
        "use buckets: data_parallel=dense allreduce.overlap=thread, or data_parallel=zero2",
        lambda config: _sums_densely(config) and config.allreduce.overlap != "none",
        by_member=True,
    ),
    Row(
        (
            "sparse.density",
            "sparse.warmup_densities",
            "sparse.densities",
            "sparse.dense_below",
            "sparse.selection",
            "sparse.momentum",
            "sparse.clip_norm",
            "sparse.hierarchical",
            "sparse.overlap",
            "sparse.diagnose_every",
        ),
        "with sparse.allreduce=none",
        "choose sparse=topk, or another sparse.allreduce",
        lambda config: config.sparse.allreduce != "none",
    ),
    Row(
        ("sparse.warmup_steps",),
        "without sparse.warmup_densities",
        "set those, as sparse=dgc does",
        lambda config: bool(config.sparse.warmup_densities),
    ),
    Row(
        ("sparse.factor_masking",),
        "with sparse.momentum=0",
        "set sparse.momentum=0.9",
        lambda config: config.sparse.momentum > 0,
    ),
    Row(
        ("sparse.values", "sparse.qsgd_bits", "sparse.repartition_steps", "sparse.threshold_steps"),
        "with sparse={config.sparse.allreduce} sparse.selection={config.sparse.selection}",
        "choose a sparse.allreduce that reads it (docs/sparse.md)",
        by_member=True,
    ),
    Row(
        (
            "data_parallel.period",
            "data_parallel.warmup_steps",
            "data_parallel.cooldown_steps",
            "data_parallel.plateau_steps",
        ),
        "with data_parallel={config.data_parallel.name}",
        "use data_parallel=daso (data_parallel.period: or periodic)",
        by_member=True,
    ),
    Row(
        ("optimizer.momentum", "optimizer.nesterov", "optimizer.betas", "optimizer.eps"),
        "with optimizer={config.optimizer.name}",
        "choose the optimizer that reads it",
        by_member=True,
    ),
    Row(
        ("lr_schedule.final_fraction",),
        "with lr_schedule={config.lr_schedule.name}",
        "use lr_schedule=cosine",
        by_member=True,
    ),
    Row(
        (
            "model.hidden",
            "model.activation",
            "model.dropout",
            "model.channels",
            "model.blocks_per_stage",
            "model.groups",
            "model.width",
            "model.depth",
            "model.heads",
            "model.feedforward",
            "model.positions",
            "model.tied",
        ),
        "with model={config.model.name}",
        "choose the model that reads it",
        by_member=True,
    ),
    Row(
        ("pipeline.chunks", "pipeline.pipes", "pipeline.concatenation", "pipeline.file"),
        "with pipeline.name={config.pipeline.name}",
        "choose the schedule that reads it",
        by_member=True,
    ),
    Row(
        ("pipeline.cut",),
        "with pipeline.stages, which cuts by hand",
        "leave pipeline.stages out",
        lambda config: not config.pipeline.stages,
    ),
    Row(
        ("kernel",),
        "with precision=bf16, whose products are torch's",
        "use precision=fp32",
        lambda config: config.precision != "bf16",
    ),
    Row(
        ("checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.asynchronous"),
        "with checkpoint.every=0",
        "set checkpoint.every",
        lambda config: config.saves,
    ),
    Row(
        ("fault.rerun",),
        "with data_parallel={config.data_parallel.name} sparse={config.sparse.allreduce}, which "
        "remember what they have sent",
        "use data_parallel=dense, zero1 or zero2, and sparse=none",
        lambda config: config.sparse.allreduce == "none",
        by_member=True,
    ),
    Row(
        ("fault.rerun_window", "fault.rerun_deviations"),
        "with fault.rerun=false",
        "set fault.rerun=true",
        lambda config: config.fault.rerun,
    ),
    Row(
        ("fault.watchdog_seconds",),
        "with fault.watchdog=0, which sets no limit",
        "set fault.watchdog",
        lambda config: config.fault.watchdog > 0,
    ),
    Row(
        ("trace.skip", "trace.steps", "trace.folder", "trace.profiler"),
        "with trace=false",
        "set trace=true",
        lambda config: config.trace.enabled,
    ),
    Row(
        ("trace.enabled",),
        "with fault.recover=shrink, under which ranks and their numbers change",
        "use fault.recover=none",
        lambda config: config.fault.recover == "none",
    ),
    Row(
        ("resume_force",),
        "with resume=null",
        "set resume=auto",
        lambda config: config.resume is not None,
    ),
    Row(
        ("tracker.mlflow_uri", "tracker.mlflow_experiment"),
        "with tracker.mlflow=false",
        "set tracker.mlflow=true",
        lambda config: config.tracker.mlflow,
    ),
)


def check_combination(config: TrainConfig, reads: Collection[str]) -> None:
    """`ConfigError` for the first key that is set and has no effect. `reads`: the dotted keys that
    the chosen members of the families read.
    """
    for row in TABLE:
        holds = row.holds(config)
        for key in row.keys:
            value, default = _value_and_default(config, key)
            if value == default or (holds and (not row.by_member or key in reads)):
                continue
            raise ConfigError(
                f"{key}={show(value)} has no effect {row.otherwise.format(config=config)}: leave "
                f"it at {show(default)}, or {row.remedy}"
            )


def _value_and_default(config: TrainConfig, key: str) -> tuple[Any, Any]:
    node: Any = config
    *groups, name = key.split(".")
    for group in groups:
        node = getattr(node, group)
    (field,) = [field for field in dataclasses.fields(node) if field.name == name]
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    assert default is not dataclasses.MISSING, f"{key} has no default to compare with"
    return getattr(node, name), default
