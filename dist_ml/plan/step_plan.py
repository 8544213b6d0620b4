"""One training step of a configuration on a mesh that needn't exist: what each rank of the pipeline
computes, keeps and sends. The other ranks do as much, or less where sizes don't divide.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from dist_ml.comm.mesh import resolve_sizes
from dist_ml.config.train import TrainConfig
from dist_ml.datasets import Split, open_dataset
from dist_ml.models import Samples, WholeLayers, build_model, choose_objective
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.objective import parallel_objective
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.pipeline_parallel.stage_graph import (
    Place,
    Shape,
    Stage,
    cut_into_stages,
    output_shapes,
)
from dist_ml.plan.model_work import BlockWork, block_works, objective_work
from dist_ml.plan.planned_ranks import Collective, PlannedGrid, words_of
from dist_ml.train.axis_words import gradient_words, stage_words, sums_all_gradients
from dist_ml.train.build import checked
from dist_ml.train.build_step import DTYPES
from dist_ml.train.microbatches import largest_microbatch
from dist_ml.train.operator_axis import choose_layout
from dist_ml.train.pipeline import make_schedule, shared_by_ranks
from dist_ml.train.pipeline_checks import check_asynchronous
from dist_ml.train.stage_cuts import planned_cuts
from dist_ml.train.step import num_slots


class StageWork(NamedTuple):
    """One stage, for one micro-batch; `num_parameters`: each once, however many blocks use it."""

    blocks: tuple[BlockWork, ...]
    num_parameters: int

    @property
    def kept_bytes(self) -> int:
        return sum(block.kept_bytes for block in self.blocks)

    @property
    def sent(self) -> list[Collective]:
        """Forward and backward, to the ranks that share its layers."""
        return [one for block in self.blocks for one in (*block.forward.sent, *block.backward.sent)]


class Graph(NamedTuple):
    """How the stages hang together."""

    stages: tuple[Stage, ...]
    shapes: dict[str, Shape]
    shared: list[tuple[Place, ...]]  # parameters that stages of several ranks use


@dataclass(frozen=True)
class StepPlan:
    """`stages` in order; `microbatch`: samples of the largest one."""

    config: TrainConfig
    sizes: dict[str, int]
    schedule: Schedule
    stages: tuple[StageWork, ...]
    graph: Graph
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
        """A step's words of the rank that sends most, along each axis of more than one rank whose
        words are known beforehand.
        """
        known = [axis for axis, size in self.sizes.items() if size > 1]
        if not sums_all_gradients(self.config):
            known = [axis for axis in known if axis != "data"]
        ways = {
            "data": self.data_words,
            "pipeline": self.pipeline_words,
            "operator": self.operator_words,
        }
        return {axis: max(map(ways[axis], range(self.sizes["pipeline"]))) for axis in known}

    def data_words(self, rank: int) -> int:
        """Of the sum of a pipeline rank's gradients over the ranks that hold the same ones."""
        holders = self.schedule.holders(self.schedule.stages_of(rank)[0])
        n = self.num_parameters(rank) + self.slots
        return gradient_words(self.config, n, self.sizes["data"] * len(holders), 0)

    def pipeline_words(self, rank: int) -> int:
        sizes = [self.microbatch] * self.schedule.num_microbatches
        return stage_words(self.schedule, rank, *self.graph, sizes)

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


def plan_step(config: TrainConfig, num_ranks: int, train: Split | None = None) -> StepPlan:
    """`ConfigError` or `MeshError` for what a run on so many ranks would refuse, before it does.
    `train`: the samples to train on, where they are open already.
    """
    wanted = {axis: getattr(config.mesh, axis) for axis in ("data", "pipeline", "operator")}
    sizes = resolve_sizes(wanted, num_ranks)
    config = checked(config, sizes)
    schedule = one_stage(config.accumulation)
    if sizes["pipeline"] > 1:
        schedule = make_schedule(config.pipeline, sizes["pipeline"])
        check_asynchronous(config, schedule, sizes)
    if train is None:
        train = open_dataset(config.data, DTYPES[config.precision]).train
    return _planned(config, sizes, schedule, train)


def _planned(
    config: TrainConfig, sizes: dict[str, int], schedule: Schedule, train: Split
) -> StepPlan:
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
        model = build_model(config.model, samples, config.seed, DTYPES[config.precision], layers)
    objective = choose_objective(config.model, train.task, samples.items)
    if grid is not None:
        objective = parallel_objective(objective, model.output_spread, grid, train.num_outputs)
    cuts = [Range(0, len(model.blocks()))]
    if sizes["pipeline"] > 1:
        cuts = planned_cuts(config.pipeline, model, schedule)
    shapes = output_shapes(model, example.inputs)
    sent = grid.sent if grid is not None else []
    autocast = config.precision == "bf16"
    works, outputs = block_works(model, example.inputs, microbatch, autocast, sent)
    works.append(objective_work(objective, outputs, example.targets, microbatch, sent))
    cuts[-1] = Range(cuts[-1].start, len(works))
    stages = cut_into_stages(model, cuts)
    return StepPlan(
        config,
        sizes,
        schedule,
        tuple(
            StageWork(tuple(works[cut.slice]), sum(p.numel() for p in stage.parameters()))
            for cut, stage in zip(cuts, stages, strict=True)
        ),
        Graph(stages, shapes, shared_by_ranks(model, stages, schedule)),
        microbatch,
        microbatch * sum(part.numel() * part.element_size() for part in example[:2]),
        num_slots(objective),
    )
