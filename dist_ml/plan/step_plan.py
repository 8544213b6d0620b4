"""One training step of a configuration on a mesh that needn't exist: what each rank of the pipeline
computes, keeps and sends. The other ranks do as much, or less where sizes don't divide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch

from dist_ml.comm.mesh import resolve_sizes
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import TrainConfig
from dist_ml.datasets import Split, open_dataset
from dist_ml.errors import DistMLError
from dist_ml.operator_parallel.grid import Sides
from dist_ml.pipeline_parallel.peaks import peak_activations
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stage_graph import Place, Shape, Stage
from dist_ml.plan.planned_model import PlannedModel, TrainingData
from dist_ml.plan.planned_ranks import words_of
from dist_ml.plan.stage_work import StageWork
from dist_ml.train.axis_words import gradient_words, stage_words, sums_all_gradients
from dist_ml.train.build import checked
from dist_ml.train.build_step import DTYPES
from dist_ml.train.microbatches import largest_microbatch
from dist_ml.train.operator_axis import choose_layout
from dist_ml.train.pipeline import make_schedule, shared_by_ranks
from dist_ml.train.pipeline_checks import check_asynchronous


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
    model: PlannedModel
    microbatch: int
    batch_bytes: int  # of one micro-batch's samples and targets

    @property
    def num_ranks(self) -> int:
        return self.sizes["data"] * self.sizes["pipeline"] * self.sizes["operator"]

    @property
    def word_bytes(self) -> int:
        return DTYPES[self.config.precision].itemsize

    @cached_property
    def graph(self) -> Graph:
        stages = self.model.stages(self.config, self.schedule)
        shared = shared_by_ranks(self.model.model, stages, self.schedule)
        return Graph(stages, self.model.shapes, shared)

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """Micro-batches that each rank of the pipeline has under way at once."""
        return peak_activations(self.schedule)

    def stages_of(self, rank: int) -> list[StageWork]:
        """What a rank of the pipeline holds."""
        return [self.stages[number] for number in self.schedule.stages_of(rank)]

    def num_parameters(self, rank: int) -> int:
        """That a rank of the pipeline holds."""
        return sum(stage.num_parameters for stage in self.stages_of(rank))

    @cached_property
    def most_parameters(self) -> int:
        """Of the rank that holds most."""
        return max(map(self.num_parameters, range(self.sizes["pipeline"])))

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
        n = self.num_parameters(rank) + self.model.slots
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


ModelKey: TypeAlias = tuple[torch.dtype, str, Sides | None]


def plan_step(config: TrainConfig, num_ranks: int, train: Split | None = None) -> StepPlan:
    """`ConfigError` or `MeshError` for what a run on so many ranks would refuse, before it does.
    `train`: the samples to train on, where they are open already.
    """
    return Planner(train=train).plan(config, num_ranks)


class Planner:
    """Plans of configurations that differ in how they are spread over ranks and not in model, data
    and seed: what plans have in common is found once.
    """

    def __init__(
        self, make: Callable[[str, Request], Schedule] = make, train: Split | None = None
    ) -> None:
        """`make`: schedules, without a proof where many are planned; `train` as of `plan_step`."""
        self._make, self._train = make, train
        self._base: tuple[Any, ...] | None = None
        self._data: dict[torch.dtype, TrainingData] = {}
        self._models: dict[ModelKey, PlannedModel | DistMLError] = {}
        self._schedules: dict[tuple[PipelineConfig, int], Schedule] = {}

    def plan(self, config: TrainConfig, num_ranks: int) -> StepPlan:
        """As `plan_step`."""
        wanted = {axis: getattr(config.mesh, axis) for axis in ("data", "pipeline", "operator")}
        sizes = resolve_sizes(wanted, num_ranks)
        config = checked(config, sizes)
        schedule = self.schedule(config, sizes)
        plan = self.unchecked(config, sizes, schedule)
        if sizes["pipeline"] > 1:
            check_asynchronous(config, schedule, sizes)
            _ = plan.model.shapes  # that it has some
        return plan

    def schedule(self, config: TrainConfig, sizes: dict[str, int]) -> Schedule:
        if sizes["pipeline"] == 1:
            return one_stage(config.accumulation)
        key = config.pipeline, sizes["pipeline"]
        if key not in self._schedules:
            self._schedules[key] = make_schedule(*key, self._make)
        return self._schedules[key]

    def unchecked(self, config: TrainConfig, sizes: dict[str, int], schedule: Schedule) -> StepPlan:
        """With a schedule that needn't be the configuration's."""
        dtype = DTYPES[config.precision]
        data = self._data_of(config, dtype)
        microbatch = largest_microbatch(config, sizes, data.train.num_samples)
        layout, sides = "", None
        if sizes["operator"] > 1:
            layout, sides = choose_layout(config, sizes, data.samples, microbatch)
        key = dtype, layout, sides
        model, autocast = self._model(config, data, key), config.precision == "bf16"
        stages = model.stage_works(config, schedule, microbatch, autocast)
        sample_bytes = sum(part.numel() * part.element_size() for part in data.example[:2])
        batch_bytes = microbatch * sample_bytes
        return StepPlan(config, sizes, schedule, stages, model, microbatch, batch_bytes)

    def num_blocks(self, config: TrainConfig) -> int:
        """Of the model: as many stages can there be."""
        dtype = DTYPES[config.precision]
        return len(
            self._model(config, self._data_of(config, dtype), (dtype, "", None)).model.blocks()
        )

    def _model(self, config: TrainConfig, data: TrainingData, key: ModelKey) -> PlannedModel:
        """One that can't be made is not tried again."""
        if key not in self._models:
            try:
                self._models[key] = PlannedModel(config, data, *key)
            except DistMLError as error:
                self._models[key] = error
        found = self._models[key]
        if isinstance(found, DistMLError):
            raise found
        return found

    def _data_of(self, config: TrainConfig, dtype: torch.dtype) -> TrainingData:
        base = config.model, config.data, config.seed, config.operator_parallel.layers
        assert self._base in (None, base), "plans of one planner share model, data and seed"
        self._base = base
        if dtype not in self._data:
            train = self._train or open_dataset(config.data, dtype).train
            self._data[dtype] = TrainingData.of(train)
        return self._data[dtype]
