"""A training step of a model that is spread over the pipeline axis: its micro-batches, and what the
ranks of the axis must agree on.
"""

from collections.abc import Callable, Mapping

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.sampler import GlobalSampler, Ids
from dist_ml.datasets.dataset import Batch, Split
from dist_ml.models import BlockModel, Objective
from dist_ml.partition import block
from dist_ml.pipeline_parallel.dry_run import Interval
from dist_ml.pipeline_parallel.schedule import Action, Kind
from dist_ml.pipeline_parallel.stage_runner import StageRunner


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
