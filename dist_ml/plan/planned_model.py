"""A model as one rank of a mesh would hold it, without data, and what its blocks and stages do."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from dist_ml.config.train import TrainConfig
from dist_ml.datasets.dataset import Batch, Split
from dist_ml.models import Samples, WholeLayers, build_model, choose_objective
from dist_ml.operator_parallel.grid import Sides
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import LAYOUTS
from dist_ml.operator_parallel.objective import parallel_objective
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.stage_graph import Shape, Stage, cut_into_stages, output_shapes
from dist_ml.plan.model_work import BlockWork, block_keys, block_works, objective_work
from dist_ml.plan.planned_ranks import Collective, PlannedGrid
from dist_ml.plan.scaled_work import FEW, scaled
from dist_ml.plan.stage_work import StageWork
from dist_ml.train.stage_cuts import planned_cuts
from dist_ml.train.step import num_slots


class TrainingData(NamedTuple):
    """What a model must know of the samples that it is trained on."""

    train: Split
    samples: Samples
    example: Batch  # one sample

    @classmethod
    def of(cls, train: Split) -> "TrainingData":
        samples = Samples(train.sample_shape, train.num_outputs, train.task)
        return cls(train, samples, train.batch(np.zeros(1, np.int64)))


class Cut(NamedTuple):
    """A model in stages: their blocks, and the parameters of each."""

    ranges: list[Range]
    stages: tuple[Stage, ...]
    num_parameters: tuple[int, ...]


class PlannedModel:
    """The model of a configuration with layers as `layout` cuts them over `sides` (None: whole).
    What two questions have in common is found once.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        dtype: torch.dtype,
        layout: str,
        sides: Sides | None,
    ) -> None:
        self._data, self._sent = data, list[Collective]()
        layers: WholeLayers | ParallelLayers = WholeLayers()
        if sides is not None:
            grid = PlannedGrid(sides)
            self._sent = grid.sent
            layers = ParallelLayers(grid, layout, config.operator_parallel.layers, "torch")
        with torch.device("meta"):
            self.model = build_model(config.model, data.samples, config.seed, dtype, layers)
        objective = choose_objective(config.model, data.samples.task, data.samples.items)
        if sides is not None:
            spread = self.model.output_spread
            objective = parallel_objective(objective, spread, grid, data.samples.num_outputs)
        self._objective, self.slots = objective, num_slots(objective)
        self._keys = block_keys(self.model)
        named = (layout, *config.operator_parallel.layers.values())
        self._cuts_rows = any(name in LAYOUTS and not LAYOUTS[name].replicated for name in named)
        # Tables of positions are made by the first pass of a run, and are no part of its steps.
        block_works(self.model, data.example.inputs, 1, False, self._sent, self._keys)
        self._works: dict[tuple[int, bool], list[BlockWork]] = {}
        self._cuts: dict[int, Cut] = {}
        self._stage_works: dict[tuple[int, bool, int], tuple[StageWork, ...]] = {}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of the blocks' outputs. `ConfigError` for a model that can't be cut into stages."""
        found = output_shapes(self.model, self._data.example.inputs)
        self._sent.clear()
        return found

    def works(self, num_samples: int, autocast: bool) -> list[BlockWork]:
        """Of a micro-batch: every block's, and the objective's."""
        key = num_samples, autocast
        if key not in self._works:
            self._works[key] = self._scaled(*key) or self._recorded(*key)
        return self._works[key]

    def _scaled(self, num_samples: int, autocast: bool) -> list[BlockWork] | None:
        if self._cuts_rows or num_samples <= FEW + 1:
            return None
        few, more = (self.works(number, autocast) for number in (FEW, FEW + 1))
        known: dict[int, BlockWork | None] = {}  # of repeated blocks, by their pass
        found = []
        for one, other in zip(few, more, strict=True):
            if id(one.forward) not in known:
                known[id(one.forward)] = scaled(one, other, num_samples)
            work = known[id(one.forward)]
            if work is None:
                return None
            found.append(work._replace(name=one.name))
        return found

    def _recorded(self, num_samples: int, autocast: bool) -> list[BlockWork]:
        model, example, sent = self.model, self._data.example, self._sent
        works, outputs = block_works(model, example.inputs, num_samples, autocast, sent, self._keys)
        ends = objective_work(self._objective, outputs, example.targets, num_samples, sent)
        return [*works, ends]

    def stages(self, config: TrainConfig, schedule: Schedule) -> tuple[Stage, ...]:
        """As a run would cut the model for this schedule."""
        return self._cut(config, schedule).stages

    def stage_works(
        self, config: TrainConfig, schedule: Schedule, num_samples: int, autocast: bool
    ) -> tuple[StageWork, ...]:
        """Of a micro-batch through each stage; the objective's is part of the last."""
        key = num_samples, autocast, schedule.num_stages
        if key not in self._stage_works:
            works = self.works(num_samples, autocast)
            ranges, _, numbers = self._cut(config, schedule)
            parts = [works[blocks.slice] for blocks in ranges]
            parts[-1] = works[ranges[-1].start :]
            self._stage_works[key] = tuple(
                StageWork(tuple(part), number) for part, number in zip(parts, numbers, strict=True)
            )
        return self._stage_works[key]

    def _cut(self, config: TrainConfig, schedule: Schedule) -> Cut:
        number = schedule.num_stages
        if number not in self._cuts:
            ranges = [Range(0, len(self.model.blocks()))]
            if schedule.num_ranks > 1:
                ranges = planned_cuts(config.pipeline, self.model, schedule)
            stages = cut_into_stages(self.model, ranges)
            held = tuple(sum(p.numel() for p in stage.parameters()) for stage in stages)
            self._cuts[number] = Cut(ranges, stages, held)
        return self._cuts[number]
