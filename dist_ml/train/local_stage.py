"""What the actions of a one-stage schedule do: the whole model on this rank, one micro-batch at a
time.
"""

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets.dataset import Split
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, Objective, forward
from dist_ml.pipeline_parallel.dry_run import Interval
from dist_ml.pipeline_parallel.schedule import Action


class LocalStage:
    """Forward and backward passes of this rank's share of a batch, cut into `num_microbatches`.

    Gradients are of the sum over the share divided by the items of the *global* batch, so that
    their sum over ranks and micro-batches is the mean gradient, however unevenly the batch divides.
    """

    def __init__(
        self,
        model: BlockModel,
        objective: Objective,
        split: Split,
        sampler: GlobalSampler,
        data: Communicator,
        reducer: GradientReducer,
        phases: Phases,
        num_microbatches: int,
        autocast: bool,
    ) -> None:
        self._model = model
        self._objective = objective
        self._split = split
        self._sampler = sampler
        self._data = data
        self._reducer = reducer
        self._phases = phases
        self._num_microbatches = num_microbatches
        self._autocast = autocast
        self._place = (0, 0, 0)
        self._num_items = 1
        self._loss: torch.Tensor | None = None

    def begin(self, number: int, epoch: int, index: int) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks.
        """
        self._place = number, epoch, index
        batch_size = self._sampler.batch_size_at(index)
        self._num_items = batch_size * self._objective.items_per_sample
        return batch_size

    def end(self) -> None:
        """All actions have run."""

    @property
    def intervals(self) -> list[Interval]:
        """None: what takes how long on a whole model, its phases tell."""
        return []

    def forward(self, action: Action) -> None:
        """Loss and metrics into the slots; a rank without samples adds nothing."""
        number, epoch, index = self._place
        ids = self._sampler.share(
            epoch,
            index,
            self._data.rank,
            self._data.size,
            action.microbatch,
            num_microbatches=self._num_microbatches,
        )
        self._loss = None
        if len(ids) == 0:
            return
        with self._phases("data"):
            batch = self._split.batch(ids)
        with self._phases("forward"):
            self._model.context.set(number, ids)
            outputs = forward(self._model, batch.inputs, self._autocast)
            self._loss = self._objective.loss_sum(outputs, batch.targets) / self._num_items
            slots = self._reducer.slots
            slots[0] += self._loss.detach()
            sums = self._objective.metric_sums(outputs.detach(), batch.targets)
            for slot, value in enumerate(sums, 1):
                slots[slot] += value

    def backward(self, action: Action) -> None:
        """Gradients into the reducer's buffer; the last micro-batch's are final."""
        if action.microbatch == self._num_microbatches - 1:
            self._reducer.start()
        if self._loss is None:
            return
        loss, self._loss = self._loss, None
        with self._phases("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
