"""What the actions of a one-stage schedule do: the whole model on this rank, one micro-batch at a
time.
"""

import torch

from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, forward
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.schedule import Action
from dist_ml.train.step_batches import StepBatches


class LocalStage:
    """Forward and backward passes of this rank's share of a batch, cut into `num_microbatches`."""

    def __init__(
        self,
        model: BlockModel,
        batches: StepBatches,
        reducer: GradientReducer,
        phases: Phases,
        num_microbatches: int,
        autocast: bool,
    ) -> None:
        self._model = model
        self._batches = batches
        self._reducer = reducer
        self._phases = phases
        self._num_microbatches = num_microbatches
        self._autocast = autocast
        self._sizes: list[int] = []
        self._loss: torch.Tensor | None = None

    @property
    def runs_ahead(self) -> bool:
        return False

    def begin(
        self,
        number: int,
        epoch: int,
        index: int,
        *,
        following: tuple[int, int] | None = None,  # noqa: ARG002 - not before this step's update
    ) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks.
        """
        batch_size, self._sizes = self._batches.begin(number, epoch, index)
        return batch_size

    def again(self, shift: int) -> None:
        """The next actions are of the same batch, on the share of the replica so many after this
        one.
        """
        self._sizes = self._batches.again(shift)

    def end(self) -> None:
        """All actions have run."""

    def empty_pipe(self) -> None:
        """No next step ever begins."""

    @property
    def timed_actions(self) -> list[TimedAction]:
        """None: what takes how long on a whole model, its phases tell."""
        return []

    def forward(self, action: Action) -> None:
        """Loss and metrics into the slots; a rank without samples adds nothing."""
        m = action.microbatch
        self._loss = None
        if not self._sizes[m]:
            return
        with self._phases("data"):
            batch = self._batches.load(m)
        with self._phases("forward"):
            self._batches.enter(m)
            outputs = forward(self._model, batch.inputs, self._autocast)
            self._loss = self._batches.loss(outputs, batch)

    def backward(self, action: Action) -> None:
        """Gradients into the reducer's buffer; the last micro-batch's are final."""
        if action.microbatch == self._num_microbatches - 1:
            self._reducer.start()
        if self._loss is None:
            return
        loss, self._loss = self._loss, None
        with self._phases("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
