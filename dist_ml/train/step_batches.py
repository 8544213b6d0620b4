"""A step's samples on this rank, micro-batch by micro-batch, and what is summed over them."""

from collections.abc import Callable

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.sampler import GlobalSampler, Ids
from dist_ml.datasets.dataset import Batch, Split
from dist_ml.models import BlockModel, Objective


class StepBatches:
    """This replica's share of a step's batch, cut into micro-batches.

    The loss is the sum over a micro-batch divided by the items of the *global* batch, so that
    gradients add up to those of the mean, however unevenly the batch divides. It is entered, with
    metrics, where `slots_of` the micro-batch are.
    """

    def __init__(
        self,
        model: BlockModel,
        objective: Objective,
        split: Split,
        sampler: GlobalSampler,
        data: Communicator,
        num_microbatches: int,
        slots_of: Callable[[int], torch.Tensor],
    ) -> None:
        self._model, self._objective, self._split = model, objective, split
        self._sampler, self._data = sampler, data
        self._num_microbatches = num_microbatches
        self._slots_of = slots_of
        self._number, self._place = 0, (0, 0)
        self._num_items = 1
        self._ids: list[Ids] = []
        self._current = 0  # the micro-batch of the passes that follow

    def begin(
        self, number: int, epoch: int, index: int, following: tuple[int, int] | None = None
    ) -> tuple[int, list[int]]:
        """Samples of the global batch, and of each micro-batch of this replica. Those of the
        `following` batch (its epoch and index) are numbers N, N + 1, ….
        """
        self._number, self._place = number, (epoch, index)
        batch_size = self._sampler.batch_size_at(index)
        self._num_items = batch_size * self._objective.items_per_sample
        self._ids = self._cut(epoch, index)
        if following is not None:
            self._ids += self._cut(*following)
        return batch_size, [len(part) for part in self._ids]

    def again(self, shift: int) -> list[int]:
        """The same batch once more, with the share of the replica so many after this one; the
        samples of each micro-batch.
        """
        self._ids = self._cut(*self._place, shift)
        return [len(part) for part in self._ids]

    def _cut(self, epoch: int, index: int, shift: int = 0) -> list[Ids]:
        size, num = self._data.size, self._num_microbatches
        rank = (self._data.rank + shift) % size
        return self._sampler.microbatches(epoch, index, rank, size, num)

    def load(self, m: int) -> Batch:
        """The samples of micro-batch m."""
        return self._split.batch(self._ids[m])

    def enter(self, m: int) -> None:
        """The next passes are of micro-batch m: layers that draw random numbers are told."""
        self._current = m
        self._model.context.set(self._number + m // self._num_microbatches, self._ids[m])

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool = True) -> torch.Tensor:
        """The micro-batch's part of the loss; `count` enters it, and metrics, in the slots."""
        loss_sum, *metrics = self._objective.sums(outputs, batch.targets)
        loss = loss_sum / self._num_items
        if count:
            slots = self._slots_of(self._current)
            for slot, value in enumerate((loss.detach(), *metrics)):
                slots[slot] += value
        return loss
