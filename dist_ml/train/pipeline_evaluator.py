"""Means over a split by a model that is spread over the pipeline axis: forward passes only."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.datasets.dataset import Split
from dist_ml.models import BlockModel, Objective
from dist_ml.models.blocks import INPUTS, bf16_products, in_full
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.stage_graph import Stage
from dist_ml.train.evaluator import Evaluation, SplitShare, evaluating, no_border
from dist_ml.train.pipeline import Pipeline

# Micro-batches of one pass through the pipe, each with tags of its own: few enough that a run that
# is told to stop needn't wait long, and so many that the pipe is full most of the time.
_PIECES_AT_ONCE = 64


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
        num_shards: int | None = None,
    ) -> None:
        self._num_shards = num_shards
        self.model = model
        self._objective = objective
        self._mesh = mesh
        self._pipeline = pipeline
        self._autocast = autocast
        self._dtype = dtype

    def evaluate(
        self,
        split: Split,
        batch_size: int = 1024,
        at_border: Callable[[], None] = no_border,
    ) -> Evaluation:
        """As `Evaluator.evaluate`; `at_border` is called before each pass."""
        rows = max(1, batch_size // self._objective.items_per_sample)
        data, num_sums = self._mesh.comm("data"), self._objective.num_slots
        share = SplitShare(split.num_samples, rows, data, num_sums, self._num_shards)
        with evaluating(self.model):
            for start in range(0, share.most_pieces, _PIECES_AT_ONCE):
                at_border()
                if own := share.pieces[start : start + _PIECES_AT_ONCE]:
                    self._pass(split, share, own)
        sums = share.total(self._mesh.comm("data", "pipeline"))
        return Evaluation.of(sums, self._objective, split.num_samples)

    def _pass(self, split: Split, share: SplitShare, pieces: Sequence[tuple[int, Range]]) -> None:
        """Each of `pieces` through all stages; what the last one finds into the sums of `share`."""
        schedule, messages = self._begin([piece.size for _, piece in pieces])
        for number, _, m in schedule.actions[self._pipeline.comm.rank]:
            stage, batch = self._pipeline.stages[number], None
            shard, piece = pieces[m]
            if stage.reads_inputs or stage.is_last:
                batch = split.batch(np.arange(piece.start, piece.stop, dtype=np.int64))
            outputs = self._run(stage, m, messages, batch.inputs if batch else None)
            if outputs is not None:
                assert batch is not None
                share.add(shard, self._objective.sums(outputs, batch.targets))
        messages.end()

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs for inputs that all ranks have. Collective along the pipeline axis;
        words: those of the outputs, beside those between the stages.
        """
        pipeline = self._pipeline
        schedule, messages = self._begin([len(inputs)])
        found = torch.empty(0)
        with evaluating(self.model):
            for number, _, m in schedule.actions[pipeline.comm.rank]:
                outputs = self._run(pipeline.stages[number], m, messages, inputs)
                if outputs is not None:
                    found = outputs.contiguous()
        messages.end()
        root = schedule.pipes[0][-1]
        if pipeline.comm.rank != root:
            shape = pipeline.shapes[pipeline.stages[-1].output].sizes
            found = torch.empty(len(inputs), *shape, dtype=self._dtype)
        pipeline.comm.broadcast(found, root)
        return self._objective.whole(found)

    def _begin(self, sizes: list[int]) -> tuple[Schedule, StageMessages]:
        """The forward passes of micro-batches of so many samples, and what is sent between them."""
        pipeline = self._pipeline
        schedule = forward_schedule(pipeline.schedule, len(sizes))
        messages = StageMessages(
            pipeline.comm, schedule, pipeline.stages, pipeline.shapes, self._dtype
        )
        messages.begin(sizes)
        return schedule, messages

    def _run(
        self, stage: Stage, m: int, messages: StageMessages, inputs: torch.Tensor | None
    ) -> torch.Tensor | None:
        """A micro-batch through a stage, `inputs` being the model's; the outputs of the last."""
        values = {edge.value: messages.take(edge, m) for edge in stage.takes}
        if inputs is not None:
            values[INPUTS] = inputs
        with bf16_products(self._autocast):
            stage.runner()(values)
        for edge in stage.gives:
            messages.give(edge, m, values[edge.value])
        return in_full(values[stage.output]) if stage.is_last else None


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
