"""What a training step asks of this rank's stages of a pipeline."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.schedule import Action, Kind
from dist_ml.pipeline_parallel.stage_runner import StageRunner


class Batches(Protocol):
    """What steps are computed on."""

    def begin(self, number: int, epoch: int, index: int) -> tuple[int, list[int]]:
        """Samples of the global batch, and of each micro-batch of this replica."""


class PipelineStages:
    """What `TrainStep` asks of a stage, of this rank's stages of a pipeline."""

    def __init__(self, runner: StageRunner, batches: Batches) -> None:
        self._runner = runner
        self._batches = batches

    @property
    def methods(self) -> Mapping[Kind, Callable[[Action], None]]:
        return self._runner.methods

    def begin(
        self, number: int, epoch: int, index: int, ahead: Collection[Action] | None = None
    ) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks. `ahead`: these alone, until `go_on` or `discard`.
        """
        batch_size, sizes = self._batches.begin(number, epoch, index)
        self._runner.begin(sizes, ahead)
        return batch_size

    def go_on(self) -> None:
        self._runner.go_on()

    def discard(self, remaining: Sequence[Action], ahead: Collection[Action]) -> None:
        """As if the step had not begun. All ranks of the pipeline."""
        self._runner.discard(remaining, ahead)

    def end(self) -> None:
        self._runner.end()

    @property
    def timed_actions(self) -> list[TimedAction]:
        """When this rank computed which action of the last step."""
        return self._runner.timed_actions
