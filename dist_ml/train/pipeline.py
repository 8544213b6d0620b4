"""From a configuration to a model that is spread over the pipeline axis: schedule, stages, and who
holds the same ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.names import require_one_of
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, ScheduleError
from dist_ml.measure.memory import physical_bytes, spell_bytes
from dist_ml.models import BlockModel
from dist_ml.models.blocks import Block
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES, make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stage_graph import (
    Place,
    Shape,
    Stage,
    cut_into_stages,
    output_shapes,
    shared_parameters,
)
from dist_ml.train.stage_cuts import choose_cuts


class Pipeline(NamedTuple):
    """How a model lies along the pipeline axis."""

    schedule: Schedule
    stages: tuple[Stage, ...]
    shapes: dict[str, Shape]
    shared: list[tuple[Place, ...]]  # parameters that stages of several ranks use
    comm: Communicator  # the pipeline axis
    replicas: Communicator  # the ranks that hold the same stages as this one
    num_copies: int  # of them, those of one pipeline: above 1 where pipes go both ways

    @property
    def own(self) -> list[Stage]:
        """This rank's stages."""
        return [self.stages[number] for number in self.schedule.stages_of(self.comm.rank)]


def build_pipeline(
    config: TrainConfig, mesh: Mesh, model: BlockModel, sample: torch.Tensor, num_samples: int
) -> Pipeline:
    """Cut `model`, which is on the meta device, and make this rank's part of it. `sample` [1, ...]:
    one of its inputs; `num_samples` of the largest micro-batch. Collective; `ConfigError` on all
    ranks for what can't be.
    """
    comm = mesh.comm("pipeline")
    with raise_on_all_ranks(mesh.world):
        schedule = make_schedule(config.pipeline, comm.size)
        shapes = output_shapes(model, sample)
    cuts = choose_cuts(config, mesh, model, schedule, shapes, sample, num_samples)
    with raise_on_all_ranks(mesh.world):
        stages = cut_into_stages(model, cuts)
        shared = shared_by_ranks(model, stages, schedule)
        copies = _copies(schedule, comm.rank)
        own = [block for number in schedule.stages_of(comm.rank) for block in stages[number].blocks]
        _require_fits(own, schedule.weight_versions)
        model.materialize(own)
    # All ranks split, or none: in a file some stages may have copies and others none.
    if any(len(schedule.holders(stage.number)) > 1 for stage in stages):
        both = mesh.comm("data", "pipeline")
        replicas = both.split(min(copies), both.rank, axis="data")
        assert replicas is not None
    else:
        replicas = mesh.comm("data")
    return Pipeline(schedule, stages, shapes, shared, comm, replicas, len(copies))


def shared_by_ranks(
    model: BlockModel, stages: Sequence[Stage], schedule: Schedule
) -> list[tuple[Place, ...]]:
    """The uses of each parameter that stages of several ranks use."""
    return [
        places
        for places in shared_parameters(model, stages)
        if len({schedule.holders(place.stage) for place in places}) > 1
    ]


def make_schedule(
    config: PipelineConfig, num_ranks: int, make: Callable[[str, Request], Schedule] = make
) -> Schedule:
    """The schedule that `config` names on so many ranks, proved by the `make` of a run."""
    require_one_of("pipeline.name", config.name, SCHEDULES)
    request = Request(
        num_ranks,
        config.num_microbatches(num_ranks),
        chunks=config.chunks,
        pipes=config.pipes,
        concatenation=config.concatenation,
        file=config.file,
    )
    return make(config.name, request)


def _copies(schedule: Schedule, rank: int) -> tuple[int, ...]:
    """The ranks of the pipeline that hold the same stages as `rank`, itself among them."""
    holders = {schedule.holders(stage) for stage in schedule.stages_of(rank)}
    if not holders:
        raise ScheduleError(
            f"schedule {schedule.name}: rank {rank} holds no stage; leave it out, with one rank "
            "less along mesh.pipeline"
        )
    if len(holders) > 1:
        raise ScheduleError(
            f"schedule {schedule.name}: the stages of rank {rank} have copies on different ranks, "
            f"{' and '.join(map(str, sorted(holders)))}; ranks must share all of their stages or "
            "none"
        )
    return holders.pop()


def _require_fits(blocks: list[Block], weight_versions: int) -> None:
    parameters = [parameter for block in blocks for parameter in block.module.parameters()]
    held = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    needed = (weight_versions + 1) * held
    if needed > physical_bytes():
        raise ConfigError(
            f"the parameters and gradients of this rank's stages take {spell_bytes(needed)}, but "
            f"its machine has {spell_bytes(physical_bytes())}; use more stages"
        )
