"""What a training step asks of this rank's stages of a pipeline."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.schedule import Action
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.slot_relay import SlotRelay


class Batches(Protocol):
    """What steps are computed on."""

    def begin(
        self, number: int, epoch: int, index: int, following: tuple[int, int] | None = None
    ) -> tuple[int, list[int]]:
        """Samples of the global batch, and of each micro-batch of this replica; then of those of
        the `following` batch.
        """


class PipelineStages:
    """What `TrainStep` asks of a stage, of this rank's stages of a pipeline.

    `relay`: of an asynchronous schedule, whose steps also run forward passes of the batch that
    follows.
    """

    def __init__(
        self, runner: StageRunner, batches: Batches, relay: SlotRelay | None = None
    ) -> None:
        self._runner = runner
        self._batches = batches
        self._relay = relay

    @property
    def runs_ahead(self) -> bool:
        return self._relay is not None

    def begin(
        self,
        number: int,
        epoch: int,
        index: int,
        ahead: Collection[Action] | None = None,
        *,
        following: tuple[int, int] | None = None,
    ) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks. `ahead`: these alone, until `go_on` or `discard`.
        """
        after = following if self.runs_ahead else None
        if self._relay is not None:
            self._relay.drains = following is None
        batch_size, sizes = self._batches.begin(number, epoch, index, after)
        self._runner.begin(sizes, ahead)
        return batch_size

    def arrives(self, action: Action, unless: Callable[[], bool]) -> bool:
        """Wait for all that `action` uses; false as soon as `unless` is true before."""
        return self._runner.arrives(action, unless)

    def go_on(self) -> None:
        self._runner.go_on()

    def discard(self, remaining: Sequence[Action], ahead: Collection[Action]) -> None:
        """As if the step had not begun. All ranks of the pipeline."""
        self._runner.discard(remaining, ahead)

    def end(self) -> None:
        self._runner.end()

    def empty_pipe(self) -> None:
        self._runner.empty_pipe()
        if self._relay is not None:
            self._relay.finish()

    @property
    def timed_actions(self) -> list[TimedAction]:
        """When this rank computed which action of the last step."""
        return self._runner.timed_actions
