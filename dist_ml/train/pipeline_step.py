"""A training step of a model that is spread over the pipeline axis: its micro-batches, and what the
ranks of the axis must agree on.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler, Ids
from dist_ml.datasets.dataset import Batch, Split
from dist_ml.models import BlockModel, Objective
from dist_ml.partition import block
from dist_ml.pipeline_parallel.dry_run import Interval
from dist_ml.pipeline_parallel.schedule import Action, Kind
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.pipeline import Pipeline


class StepBatches:
    """This replica's share of a step's batch, cut into micro-batches (`MicroBatches`).

    The loss is the sum over a micro-batch divided by the items of the *global* batch, so that
    gradients add up to those of the mean, however unevenly the batch divides.
    """

    def __init__(
        self,
        model: BlockModel,
        objective: Objective,
        split: Split,
        sampler: GlobalSampler,
        data: Communicator,
        num_microbatches: int,
        slots: torch.Tensor,
    ) -> None:
        self._model, self._objective, self._split = model, objective, split
        self._sampler, self._data = sampler, data
        self._num_microbatches = num_microbatches
        self._slots = slots
        self._number = 0
        self._num_items = 1
        self._ids: list[Ids] = []

    def begin(self, number: int, epoch: int, index: int) -> tuple[int, list[int]]:
        """Samples of the global batch, and of each micro-batch of this replica."""
        self._number = number
        batch_size = self._sampler.batch_size_at(index)
        self._num_items = batch_size * self._objective.items_per_sample
        ids = self._sampler.share(epoch, index, self._data.rank, self._data.size)
        cut = self._num_microbatches
        self._ids = [ids[block(len(ids), cut, m).slice] for m in range(cut)]
        return batch_size, [len(part) for part in self._ids]

    def load(self, m: int) -> Batch:
        return self._split.batch(self._ids[m])

    def enter(self, m: int) -> None:
        self._model.context.set(self._number, self._ids[m])

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool) -> torch.Tensor:
        loss = self._objective.loss_sum(outputs, batch.targets) / self._num_items
        if count:
            self._slots[0] += loss.detach()
            sums = self._objective.metric_sums(outputs.detach(), batch.targets)
            for slot, value in enumerate(sums, 1):
                self._slots[slot] += value
        return loss


class PipelineStages:
    """What `TrainStep` asks of a stage, of this rank's stages of a pipeline."""

    def __init__(self, runner: StageRunner, batches: StepBatches) -> None:
        self._runner = runner
        self._batches = batches

    @property
    def methods(self) -> Mapping[Kind, Callable[[Action], None]]:
        return self._runner.methods

    def begin(self, number: int, epoch: int, index: int) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks.
        """
        batch_size, sizes = self._batches.begin(number, epoch, index)
        self._runner.begin(sizes)
        return batch_size

    def end(self) -> None:
        self._runner.end()

    @property
    def intervals(self) -> list[Interval]:
        """When this rank computed which action of the last step."""
        return self._runner.intervals


class PipelineReducer(GradientReducer):
    """Sums this rank's gradients over the ranks that hold the same stages, by `inner`, and has the
    ranks of the pipeline agree on the rest.

    Parameters that stages of several ranks use are summed over these first. Words beside `inner`'s:
    the slots and, where somebody asks, the norm, once along the pipeline axis.

    Gradients are exchanged as they become final where the ranks that exchange them run the same
    actions. Copies in pipes of different directions don't: one would wait in an exchange for the
    other, which waits for an action of the first.
    """

    def __init__(self, inner: GradientReducer, pipeline: Pipeline) -> None:
        self._inner = inner
        self._comm = pipeline.comm
        self._share = 1 / pipeline.num_copies
        self._ties = _Ties(pipeline)
        self._eager = pipeline.num_copies == 1 and not pipeline.shared
        self._started = False
        self.slots = inner.slots

    def begin(self) -> None:
        self._inner.begin()

    def start(self) -> None:
        """Gradients become final: where that may be told at once, exchanges begin."""
        if self._eager:
            self._started = True
            self._inner.start()

    def finish(self) -> "PipelineGradients":
        self._ties.sum()
        if not self._started:
            self._inner.start()
        self._started = False
        return PipelineGradients(self._inner.finish(), self._comm, self._share, self._ties)

    def diagnostics(self) -> dict[str, float]:
        return self._inner.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)

    def close(self) -> None:
        self._inner.close()


class PipelineGradients(ReducedGradients):
    """The gradient of the whole model, of which this rank holds its stages'.

    `share`: of what this rank holds, what it counts for in sums along the axis, where others hold
    the same. Slots and norm are one allreduce of a few words each.
    """

    def __init__(
        self, inner: ReducedGradients, comm: Communicator, share: float, ties: "_Ties"
    ) -> None:
        self._inner, self._comm, self._share, self._ties = inner, comm, share, ties
        self.is_agreed = inner.is_agreed
        slots = np.array(inner.slots, np.float64) * share
        comm.allreduce(slots)
        self.slots = [float(value) for value in slots]

    def norm(self) -> float:
        norm = self._inner.norm()
        square = np.array([self._share * (norm * norm - self._ties.counted_twice())], np.float64)
        self._comm.allreduce(square)
        return math.sqrt(float(square[0])) if square[0] >= 0 else math.nan

    def scale(self, factor: float) -> None:
        self._inner.scale(factor)

    def roll_back(self) -> None:
        self._inner.roll_back()


class _Ties:
    """Parameters that several ranks of a pipeline use: each holds a copy, updated alike, because
    each has the sum of all uses' gradients.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        schedule, comm = pipeline.schedule, pipeline.comm
        copies = schedule.holders(schedule.stages_of(comm.rank)[0])
        self._tied: list[tuple[torch.nn.Parameter, Communicator, int, float]] = []
        for places in pipeline.shared:
            users = sorted({rank for place in places for rank in schedule.holders(place.stage)})
            own = [place for place in places if comm.rank in schedule.holders(place.stage)]
            group = comm.split(0 if own else None, comm.rank)
            if own:
                assert group is not None
                same = len(set(copies) & set(users))
                self._tied.append((own[0].parameter, group, same, 1 - same / len(users)))

    def sum(self) -> None:
        """Over the uses; divided by the copies that the reducer will add up. Collective."""
        for parameter, group, same, _ in self._tied:
            sink = getattr(parameter, "gradient_sink", None)
            if sink is not None:
                sink.zero_if_empty()
            assert parameter.grad is not None
            group.allreduce(parameter.grad)
            if same > 1:
                parameter.grad.div_(same)

    def counted_twice(self) -> float:
        """Of this rank's squared norm, the part that other ranks count, too."""
        return sum(
            more * float(torch.linalg.vector_norm(parameter.grad)) ** 2
            for parameter, _, _, more in self._tied
            if parameter.grad is not None
        )
