"""What a pipeline can't be combined with, told before training."""

from collections.abc import Mapping

from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.train.pipeline import Pipeline


def check_axes(config: TrainConfig, sizes: Mapping[str, int]) -> None:
    """`ConfigError` for keys that a mesh of these sizes has no use for, or can't serve."""
    if sizes["pipeline"] == 1:
        if config.pipeline != PipelineConfig():
            raise ConfigError(
                "pipeline.* has no effect with mesh.pipeline=1: leave it out, or set mesh.pipeline"
            )
        return
    if config.accumulation > 1:
        raise ConfigError(
            f"accumulation={config.accumulation} has no effect with "
            f"mesh.pipeline={sizes['pipeline']}: a pipeline's pieces of a batch are "
            f"pipeline.microbatches; set accumulation=1 pipeline.microbatches={config.accumulation}"
        )
    if config.data_parallel.name in ("periodic", "daso"):
        raise ConfigError(
            f"data_parallel={config.data_parallel.name} is not built for mesh.pipeline="
            f"{sizes['pipeline']}; use dense, zero1 or zero2"
        )
    if config.pipeline.cut == "measured" and sizes["operator"] > 1:
        raise ConfigError(
            f"pipeline.cut=measured times blocks on one rank, which with mesh.operator="
            f"{sizes['operator']} holds parts of them; use pipeline.cut=modelled, or "
            "pipeline.stages"
        )


def check_shared(config: TrainConfig, pipeline: Pipeline) -> None:
    """`ConfigError` where a parameter of several stages meets an exchange that can't sum it."""
    dense = config.data_parallel.name == "dense" and config.sparse.allreduce == "none"
    if pipeline.shared and not dense:
        raise ConfigError(
            f"{pipeline.shared[0][0].name} is used by several stages, whose gradients are only "
            "summed with data_parallel=dense sparse=none; use these, or stages that keep its users "
            "together (pipeline.stages)"
        )


def check_asynchronous(config: TrainConfig, schedule: Schedule, sizes: Mapping[str, int]) -> None:
    """`ConfigError` for what a schedule whose steps run into each other can't serve on a mesh of
    these sizes.
    """
    if not schedule.is_asynchronous:
        return
    name = f"pipeline.name={config.pipeline.name}"
    if config.clip_norm is not None or config.nonfinite == "skip":
        key = "nonfinite=skip" if config.clip_norm is None else f"clip_norm={config.clip_norm}"
        raise ConfigError(
            f"{key} needs the norm of the whole gradient before each update, for which {name} "
            "would have to empty the pipe; set clip_norm=null nonfinite=stop, or use one_f_one_b"
        )
    if config.pipeline.validate == "after":
        raise ConfigError(
            f"pipeline.validate=after has no effect with {name}, whose steps run into each other "
            "anyway; leave it at auto"
        )
    if config.data_parallel.name != "dense":
        raise ConfigError(
            f"data_parallel={config.data_parallel.name} keeps one version of the weights, and "
            f"{name} needs two; use data_parallel=dense, or pipeline=one_f_one_b"
        )
    if sizes["operator"] > 1:
        raise ConfigError(
            f"{name} is not built for layers on several ranks, mesh.operator="
            f"{sizes['operator']}; use mesh.operator=1, or pipeline=one_f_one_b"
        )
