"""One optimizer step: an executor runs a schedule, the gradients are reduced, checked, and used.

begin      gradients and slots are zero
run        every action of this rank: forward and backward passes, micro-batch by micro-batch
finish     the sums over the data axis
admits     finite? clipped
update     the optimizer's step, and what follows it
"""

from dataclasses import dataclass
from typing import Protocol

from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.measure.timer import Phases
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.train.guard import Guard
from dist_ml.train.updater import Updater


@dataclass(frozen=True)
class Step:
    """What one step did; the same on all ranks."""

    number: int  # optimizer steps before this one, from the start of the run
    epoch: int
    num_samples: int  # of the global batch
    loss: float  # mean over the global batch, before the update
    metrics: tuple[float, ...]  # sums over the global batch, as the objective names them
    skipped: bool  # not finite, and left out


class StepStages(Protocol):
    """What this rank holds of the model, for as long as the actions of a step run."""

    def begin(self, number: int, epoch: int, index: int) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks.
        """

    def end(self) -> None:
        """All actions have run."""

    @property
    def timed_actions(self) -> list[TimedAction]:
        """When this rank computed which action of the last step, where that is recorded."""


class TrainStep:
    """All that follows the reduction is computed from reduced values, hence the same on all
    ranks.
    """

    def __init__(
        self,
        executor: Executor,
        stages: StepStages,
        reducer: GradientReducer,
        guard: Guard,
        updater: Updater,
        phases: Phases,
    ) -> None:
        self._executor = executor
        self.stages = stages
        self._reducer = reducer
        self._guard = guard
        self._updater = updater
        self._phases = phases
        self.num_steps = 0

    def run(self, epoch: int, index: int) -> Step:
        """One optimizer step on the `index`-th global batch of `epoch`. Raises `NonFiniteError` on
        all ranks, or skips.
        """
        number = self.num_steps
        self._reducer.begin()
        num_samples = self.stages.begin(number, epoch, index)
        self._executor.run()
        self.stages.end()
        with self._phases("exchange"):
            reduced = self._reducer.finish()
        with self._phases("update"):
            loss, *metrics = reduced.slots
            taken = self._guard.admits(reduced, epoch, number)
            if taken:
                self._updater.update(loss)
            self._updater.advance()
        self.num_steps += 1
        sums = tuple(metrics) if taken else (0.0,) * len(metrics)
        return Step(number, epoch, num_samples, loss, sums, skipped=not taken)
