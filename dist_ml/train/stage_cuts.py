"""Where a model is cut into stages: by hand, or so that the most expensive stage is cheapest."""

from collections.abc import Mapping, Sequence
from math import prod

import torch

from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.mesh import Mesh
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.models import BlockModel
from dist_ml.models.blocks import Block
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.stage_graph import Shape
from dist_ml.pipeline_parallel.stages import cut_by_hand, cut_evenly
from dist_ml.placement import whole_shape
from dist_ml.train.block_costs import measured_costs


def choose_cuts(
    config: TrainConfig,
    mesh: Mesh,
    model: BlockModel,
    schedule: Schedule,
    shapes: Mapping[str, Shape],
    sample: torch.Tensor,
    num_samples: int,
) -> list[Range]:
    """The blocks of each stage, the same on all ranks. `shapes`: of the blocks' outputs; `sample`
    [1, ...]: one of the model's inputs; `num_samples` of the largest micro-batch. Collective;
    `ConfigError` on all ranks for what can't be.
    """
    if config.pipeline.cut == "measured":
        autocast = config.precision == "bf16"
        costs: Sequence[float] = from_root(
            mesh.world, lambda: measured_costs(model, shapes, sample, num_samples, autocast)
        )
        with raise_on_all_ranks(mesh.world):
            return _cuts(config.pipeline, model.blocks(), schedule, costs)
    with raise_on_all_ranks(mesh.world):
        return planned_cuts(config.pipeline, model, schedule)


def planned_cuts(config: PipelineConfig, model: BlockModel, schedule: Schedule) -> list[Range]:
    """By hand, or by modelled costs: the same wherever it is asked."""
    costs = [_modelled_cost(block) for block in model.blocks()]
    return _cuts(config, model.blocks(), schedule, costs)


def _cuts(
    config: PipelineConfig, blocks: Sequence[Block], schedule: Schedule, costs: Sequence[float]
) -> list[Range]:
    if not config.stages:
        return cut_evenly(costs, schedule.num_stages)
    cuts = cut_by_hand([block.name for block in blocks], config.stages)
    if len(cuts) != schedule.num_stages:
        raise ConfigError(
            f"pipeline.stages names {len(cuts)} stages, but pipeline.name={config.name} on "
            f"{schedule.num_ranks} ranks has {schedule.num_stages}; name as many first blocks"
        )
    return cuts


def _modelled_cost(block: Block) -> float:
    """Each weight is multiplied once a sample and pass. Of whole blocks, whichever part of them the
    ranks that share one hold.
    """
    return 1 + sum(prod(whole_shape(parameter)) for parameter in block.module.parameters())
