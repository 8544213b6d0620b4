"""Means over a split by a model that is spread over the pipeline axis: forward passes only."""

import numpy as np
import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.datasets.dataset import Batch, Split
from dist_ml.models import BlockModel, Objective
from dist_ml.models.blocks import INPUTS, bf16_products
from dist_ml.partition import Range, block, pieces
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.stage_graph import Stage
from dist_ml.train.evaluator import Evaluation
from dist_ml.train.pipeline import Pipeline

_PIECES_AT_ONCE = 256  # micro-batches of one pass through the pipe, each with tags of its own


class PipelineEvaluator:
    """As `Evaluator`, with each replica's block of a split sent through its pipe piece by piece."""

    def __init__(
        self,
        model: BlockModel,
        objective: Objective,
        mesh: Mesh,
        pipeline: Pipeline,
        autocast: bool,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self._objective = objective
        self._mesh = mesh
        self._pipeline = pipeline
        self._autocast = autocast
        self._dtype = dtype

    def evaluate(self, split: Split, batch_size: int = 1024) -> Evaluation:
        """Mean loss and accuracy. Collective."""
        data = self._mesh.comm("data")
        mine = block(split.num_samples, data.size, data.rank)
        sums = torch.zeros(self._objective.num_slots, dtype=torch.float64)
        self.model.context.clear()
        self.model.eval()
        parts = list(pieces(mine.size, batch_size))
        with torch.inference_mode():
            for start in range(0, len(parts), _PIECES_AT_ONCE):
                ranges = [
                    Range(mine.start + part.start, mine.start + part.stop)
                    for part in parts[start : start + _PIECES_AT_ONCE]
                ]
                self._pass(split, ranges, sums)
        self.model.train()
        self._mesh.comm("data", "pipeline").allreduce(sums)
        return Evaluation.of(sums, self._objective, split.num_samples)

    def _pass(self, split: Split, ranges: list[Range], sums: torch.Tensor) -> None:
        """Each range of samples through all stages; what the last one finds into `sums`."""
        pipeline = self._pipeline
        schedule = forward_schedule(pipeline.schedule, len(ranges))
        messages = StageMessages(
            pipeline.comm, schedule, pipeline.stages, pipeline.shapes, self._dtype
        )
        messages.begin([part.size for part in ranges])
        for stage, _, m in schedule.actions[pipeline.comm.rank]:
            samples = np.arange(ranges[m].start, ranges[m].stop, dtype=np.int64)
            self._run(pipeline.stages[stage], m, messages, split, samples, sums)
        messages.end()

    def _run(
        self,
        stage: Stage,
        m: int,
        messages: StageMessages,
        split: Split,
        samples: np.ndarray[tuple[int], np.dtype[np.int64]],
        sums: torch.Tensor,
    ) -> None:
        batch: Batch | None = None
        if stage.reads_inputs or stage.is_last:
            batch = split.batch(samples)
        values = {edge.value: messages.take(edge, m) for edge in stage.takes}
        if batch is not None:
            values[INPUTS] = batch.inputs
        with bf16_products(self._autocast):
            stage.runner()(values)
        for edge in stage.gives:
            messages.give(edge, m, values[edge.value])
        if stage.is_last:
            assert batch is not None
            outputs = values[stage.output].to(batch.inputs.dtype)
            sums += torch.stack(
                [value.double() for value in self._objective.sums(outputs, batch.targets)]
            )


def forward_schedule(schedule: Schedule, num_microbatches: int) -> Schedule:
    """The forward passes of `num_microbatches` through the first pipe of `schedule`, in the order
    in which they can begin.
    """
    pipe = schedule.pipes[0]
    orders = [
        sorted(
            (
                Action(stage, "F", m)
                for stage, holder in enumerate(pipe)
                if holder == rank
                for m in range(num_microbatches)
            ),
            key=lambda action: (action.microbatch + action.stage, action.stage),
        )
        for rank in range(schedule.num_ranks)
    ]
    return one_pipe(schedule.name, orders, pipe, num_microbatches)
