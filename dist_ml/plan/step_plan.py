"""One training step of a configuration on a mesh that needn't exist: what each rank of the pipeline
computes, keeps and sends. The other ranks do as much, or less where sizes don't divide.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from dist_ml.comm.mesh import resolve_sizes
from dist_ml.comm.traffic import allreduce_words
from dist_ml.config.train import TrainConfig
from dist_ml.datasets import open_dataset
from dist_ml.models import Samples, WholeLayers, build_model, choose_objective
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.objective import parallel_objective
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.plan.model_work import BlockWork, block_works, objective_work
from dist_ml.plan.planned_ranks import Collective, PlannedGrid, words_of
from dist_ml.train.build_step import DTYPES
from dist_ml.train.members import check_members
from dist_ml.train.microbatches import largest_microbatch
from dist_ml.train.operator_axis import check_operator_axis, choose_layout
from dist_ml.train.pipeline import make_schedule
from dist_ml.train.pipeline_checks import check_asynchronous, check_axes
from dist_ml.train.stage_cuts import planned_cuts
from dist_ml.train.step import num_slots


class StageWork(NamedTuple):
    """One stage, for one micro-batch."""

    blocks: tuple[BlockWork, ...]

    @property
    def num_parameters(self) -> int:
        return sum(block.num_parameters for block in self.blocks)

    @property
    def kept_bytes(self) -> int:
        return sum(block.kept_bytes for block in self.blocks)

    @property
    def sent(self) -> list[Collective]:
        """Forward and backward, to the ranks that share its layers."""
        return [one for block in self.blocks for one in (*block.forward.sent, *block.backward.sent)]


@dataclass(frozen=True)
class StepPlan:
    """`stages` in order; `microbatch`: samples of the largest one."""

    config: TrainConfig
    sizes: dict[str, int]
    schedule: Schedule
    stages: tuple[StageWork, ...]
    microbatch: int
    batch_bytes: int  # of one micro-batch's samples and targets
    slots: int  # summed beside gradients

    @property
    def num_ranks(self) -> int:
        return self.sizes["data"] * self.sizes["pipeline"] * self.sizes["operator"]

    @property
    def word_bytes(self) -> int:
        return DTYPES[self.config.precision].itemsize

    def stages_of(self, rank: int) -> list[StageWork]:
        """What a rank of the pipeline holds."""
        return [self.stages[number] for number in self.schedule.stages_of(rank)]

    def num_parameters(self, rank: int) -> int:
        """That a rank of the pipeline holds."""
        return sum(stage.num_parameters for stage in self.stages_of(rank))

    @cached_property
    def words(self) -> dict[str, int]:
        """A step's words of the rank that sends most, along each axis of more than one rank."""
        pipeline = range(self.sizes["pipeline"])
        by_axis = {
            "data": max(map(self.data_words, pipeline)),
            "pipeline": max(map(self.pipeline_words, pipeline)),
            "operator": max(map(self.operator_words, pipeline)),
        }
        return {axis: words for axis, words in by_axis.items() if self.sizes[axis] > 1}

    def data_words(self, rank: int) -> int:
        """Of a dense or sharded sum of a pipeline rank's gradients over its replicas."""
        stages = self.schedule.stages_of(rank)
        copies = len(self.schedule.holders(stages[0])) if stages else 1
        ranks, n = self.sizes["data"] * copies, self.num_parameters(rank) + self.slots
        return allreduce_words(n, -(-n // ranks), ranks).sent if ranks > 1 else 0

    def pipeline_words(self, rank: int) -> int:
        """Activations and their gradients that leave a rank for its neighbours."""
        words = 0
        for other, actions in enumerate(self.schedule.actions):
            for stage, kind, microbatch in actions if other != rank else ():
                pipe = self.schedule.pipe(microbatch)
                if kind == "F" and stage and pipe[stage - 1] == rank:
                    words += self.boundary_words(stage - 1)
                if kind in "BI" and stage + 1 < len(pipe) and pipe[stage + 1] == rank:
                    words += self.boundary_words(stage)
        return words

    def boundary_words(self, stage: int) -> int:
        """Of a micro-batch's activations from a stage to the next."""
        return self.stages[stage].blocks[-1].output_bytes // self.word_bytes

    def operator_words(self, rank: int) -> int:
        """Of all micro-batches through a pipeline rank's stages."""
        passes = [
            self.stages[action.stage]
            for action in self.schedule.actions[rank]
            if action.kind == "F"
        ]
        repeated = [
            one
            for stage in passes
            if self.config.pipeline.recompute
            for block in stage.blocks
            for one in block.forward.sent
        ]
        return words_of(one for stage in passes for one in stage.sent) + words_of(repeated)


def plan_step(config: TrainConfig, num_ranks: int) -> StepPlan:
    """`ConfigError` or `MeshError` for what a run on so many ranks would refuse, before it does."""
    wanted = {axis: getattr(config.mesh, axis) for axis in ("data", "pipeline", "operator")}
    sizes = resolve_sizes(wanted, num_ranks)
    check_members(config)
    check_axes(config, sizes)
    check_operator_axis(config, sizes)
    schedule = one_stage(config.accumulation)
    if sizes["pipeline"] > 1:
        schedule = make_schedule(config.pipeline, sizes["pipeline"])
        check_asynchronous(config, schedule, sizes)
    return _planned(config, sizes, schedule)


def _planned(config: TrainConfig, sizes: dict[str, int], schedule: Schedule) -> StepPlan:
    dtype = DTYPES[config.precision]
    train = open_dataset(config.data, dtype).train
    samples = Samples(train.sample_shape, train.num_outputs, train.task)
    example = train.batch(np.zeros(1, np.int64))
    microbatch = largest_microbatch(config, sizes, train.num_samples)
    layers: WholeLayers | ParallelLayers = WholeLayers()
    grid: PlannedGrid | None = None
    if sizes["operator"] > 1:
        layout, sides = choose_layout(config, sizes, samples, microbatch)
        grid = PlannedGrid(sides)
        layers = ParallelLayers(grid, layout, config.operator_parallel.layers, "torch")
    with torch.device("meta"):
        model = build_model(config.model, samples, config.seed, dtype, layers)
    objective = choose_objective(config.model, train.task, samples.items)
    if grid is not None:
        objective = parallel_objective(objective, model.output_spread, grid, train.num_outputs)
    cuts = [Range(0, len(model.blocks()))]
    if sizes["pipeline"] > 1:
        cuts = planned_cuts(config.pipeline, model, schedule)
    sent = grid.sent if grid is not None else []
    autocast = config.precision == "bf16"
    works, outputs = block_works(model, example.inputs, microbatch, autocast, sent)
    stages = [list(works[cut.slice]) for cut in cuts]
    stages[-1].append(objective_work(objective, outputs, example.targets, microbatch, sent))
    return StepPlan(
        config,
        sizes,
        schedule,
        tuple(StageWork(tuple(blocks)) for blocks in stages),
        microbatch,
        microbatch * sum(part.numel() * part.element_size() for part in example[:2]),
        num_slots(objective),
    )
