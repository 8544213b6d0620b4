"""Training whose losses and weights have the same bits on any mesh: what it makes of a
configuration, and what it can't be combined with.
"""

import dataclasses
from collections.abc import Mapping

from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.kernels.kernels import AUTO
from dist_ml.models import BlockModel
from dist_ml.pipeline_parallel.stage_graph import shared_parameters
from dist_ml.train.pipeline import Pipeline


def check_reproducible(config: TrainConfig, sizes: Mapping[str, int]) -> None:
    """`ConfigError` for what can't have the same bits on a mesh of these sizes as on another."""
    shards = config.reproduce.shards
    if shards is None:
        return
    name = f"reproduce.shards={shards}"
    if shards % sizes["data"]:
        raise ConfigError(
            f"{name} can't be dealt evenly to mesh.data={sizes['data']} replicas; use a multiple "
            "of every number of replicas that the run is to be the same on"
        )
    if sizes["operator"] > 1:
        raise ConfigError(
            f"{name} is not built for mesh.operator={sizes['operator']}, whose ranks compute "
            "products of other sizes and sums in another order than one; use mesh.operator=1, or "
            "reproduce=none"
        )
    if config.allreduce != AllreduceConfig():
        raise ConfigError(
            f"allreduce.* has no effect with {name}, which has an exchange of its own: leave it "
            "out, or set reproduce=none"
        )
    if config.kernel == AUTO:
        raise ConfigError(
            f"kernel={AUTO} takes the kernel that was fastest on this machine, so that {name} "
            "could not keep its word; name one (kernel=torch), or set reproduce=none"
        )
    microbatches = config.pipeline.microbatches
    if config.precision == "bf16" and sizes["pipeline"] > 1:
        raise ConfigError(
            f"precision=bf16 rounds what goes from layer to layer, but not what goes from stage to "
            f"stage, so that {name} could not keep its word with mesh.pipeline="
            f"{sizes['pipeline']}; use precision=fp32, or mesh.pipeline=1"
        )
    if config.accumulation != 1 or microbatches is not None:
        key = f"pipeline.microbatches={microbatches}"
        if microbatches is None:
            key = f"accumulation={config.accumulation}"
        raise ConfigError(
            f"{key} has no effect with {name}, which says how a batch is cut: leave it out, or set "
            "reproduce=none"
        )


def by_shards(config: TrainConfig, sizes: Mapping[str, int]) -> TrainConfig:
    """`config` with each shard of a batch as a micro-batch, where it has shards."""
    shards = config.reproduce.shards
    if shards is None:
        return config
    own = shards // sizes["data"]
    if sizes["pipeline"] == 1:
        return dataclasses.replace(config, accumulation=own)
    return dataclasses.replace(
        config, pipeline=dataclasses.replace(config.pipeline, microbatches=own)
    )


def check_reproducible_model(config: TrainConfig, model: BlockModel) -> None:
    """`ConfigError` for a model that keeps something of the batches that its rank saw."""
    buffers = list(model.held_buffers())
    if config.reproduce.shards is not None and buffers:
        raise ConfigError(
            f"{buffers[0]} is kept from batch to batch (running statistics), by each rank of its "
            f"own, so that reproduce.shards={config.reproduce.shards} could not keep its word; use "
            "norms that keep nothing (GroupNorm, LayerNorm), or reproduce=none"
        )


def check_reproducible_pipeline(config: TrainConfig, pipeline: Pipeline, model: BlockModel) -> None:
    """`ConfigError` for a schedule or stages that sum in another order than one rank does."""
    if config.reproduce.shards is None:
        return
    name, schedule = f"reproduce.shards={config.reproduce.shards}", pipeline.schedule
    if schedule.is_asynchronous or len(schedule.pipes) > 1:
        what = "updates with weights of two steps" if schedule.is_asynchronous else "has two copies"
        raise ConfigError(
            f"{name} needs what one rank computes, but pipeline.name={schedule.name} {what}; use "
            "gpipe, one_f_one_b, interleaved or a zero-bubble schedule (zb_h1, zb_h2, zb_v)"
        )
    shared = shared_parameters(model, pipeline.stages)
    if shared:
        raise ConfigError(
            f"{shared[0][0].name} is used by several stages, whose gradients would be summed in "
            f"another order than {name} promises; use stages that keep its users together "
            "(pipeline.stages), or reproduce=none"
        )
