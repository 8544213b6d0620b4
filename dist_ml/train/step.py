"""One optimizer step: an executor runs a schedule, the gradients are reduced, checked, and used.

begin      gradients and slots are zero
run        every action of this rank: forward and backward passes, micro-batch by micro-batch
finish     the sums over the data axis
factor     finite? clipped
update     the optimizer's step, and what follows it

With `PostValidation` the update comes first, as if nothing had to be clipped, and the next step
begins; a factor other than 1 takes both back. Under an asynchronous schedule each step's actions
begin the next one, too. Whether the next step has begun, `TrainStep` alone knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.measure.timer import Phases
from dist_ml.models import Objective
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.train.guard import Guard
from dist_ml.train.post_validation import PostValidation
from dist_ml.train.updater import Updater


@dataclass(frozen=True)
class Step:
    """What one step did; the same on all ranks."""

    number: int  # optimizer steps before this one, from the start of the run
    epoch: int
    num_samples: int  # of the global batch
    # mean over the global batch, before the update; under an asynchronous schedule with the weights
    # before the update of the step before
    loss: float
    metrics: tuple[float, ...]  # sums over the global batch, as the objective names them
    skipped: bool  # not finite, and left out
    stop: bool = False  # some rank was told to stop


def num_slots(objective: Objective) -> int:
    """The sums that a step reduces beside gradients: the objective's, and how many ranks were told
    to stop.
    """
    return objective.num_slots + 1


class StepStages(Protocol):
    """What this rank holds of the model, for as long as the actions of a step run."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a step's actions are some of the following one's, too."""

    def begin(
        self, number: int, epoch: int, index: int, *, following: tuple[int, int] | None = None
    ) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks. `following`: epoch and index of the next step's batch.
        """

    def end(self) -> None:
        """All actions have run."""

    def empty_pipe(self) -> None:
        """The next step, which has begun, has not: it will run again. Collective."""

    @property
    def timed_actions(self) -> list[TimedAction]:
        """When this rank computed which action of the last step, where that is recorded."""


class TrainStep:
    """All that follows the reduction is computed from reduced values, hence the same on all
    ranks. `told_to_stop`: of this rank alone; what one was told all know after the step.
    `equalise_buffers`: what forward passes left in buffers (running statistics) becomes the same on
    all ranks. `agree` raises, on all ranks or on none, where a step's sums must not be used;
    parameters and optimizer are as before it then.
    """

    def __init__(
        self,
        executor: Executor,
        stages: StepStages,
        reducer: GradientReducer,
        guard: Guard,
        updater: Updater,
        phases: Phases,
        post_validation: PostValidation | None = None,
        told_to_stop: Callable[[], bool] = lambda: False,
        equalise_buffers: Callable[[], None] = lambda: None,
        agree: Callable[[], None] = lambda: None,
    ) -> None:
        self._executor = executor
        self.stages = stages
        self._reducer = reducer
        self._guard = guard
        self._updater = updater
        self._phases = phases
        self._post_validation = post_validation
        self._told_to_stop = told_to_stop
        self._equalise_buffers = equalise_buffers
        self._agree = agree
        self._is_likely = True  # that the next step's gradient is used as it is
        self._begun: tuple[int, int] | None = None  # epoch and index of the step under way
        self.num_steps = 0  # validated

    def run(self, epoch: int, index: int, following: tuple[int, int] | None = None) -> Step:
        """One optimizer step on the `index`-th global batch of `epoch`. Raises `NonFiniteError` on
        all ranks, or skips. `following`: epoch and index of the next step's batch; with
        post-validation, or under a schedule that doesn't empty the pipe, that step may have begun
        when this returns, all else being as after this one. It is dropped where another one is run.
        """
        if self._begun != (epoch, index):
            self.drop_next()
        number = self.num_steps
        self._reducer.begin()
        if self._told_to_stop():
            self._reducer.slots[-1] = 1
        num_samples, start = self._begin(epoch, index, following)
        self._executor.run(start)
        self.stages.end()
        with self._phases("exchange"):
            reduced = self._reducer.finish()
            self._equalise_buffers()
            self._agree()
        is_updated = following is not None and self._begin_next(reduced, following)
        with self._phases("exchange"):
            loss, *metrics, stop = reduced.slots
            factor = self._guard.factor(reduced)
        self._use(reduced, factor, is_updated, epoch)
        self.num_steps += 1
        sums = tuple(metrics) if factor is not None else (0.0,) * len(metrics)
        return Step(number, epoch, num_samples, loss, sums, factor is None, stop > 0)

    def drop_next(self) -> None:
        """A step that `run` has begun has not. Collective; costs nothing where none has."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if self._post_validation is not None:
            self._post_validation.discard()
        else:
            self.stages.empty_pipe()

    def _begin(self, epoch: int, index: int, following: tuple[int, int] | None) -> tuple[int, int]:
        """Samples of the batch over all ranks, and how many of the step's actions have run."""
        begun = self._begun
        self._begun = following if self.stages.runs_ahead else None
        if begun is not None and self._post_validation is not None:
            return self._post_validation.go_on()
        return self.stages.begin(self.num_steps, epoch, index, following=following), 0

    def _begin_next(self, reduced: ReducedGradients, following: tuple[int, int]) -> bool:
        """Where it may be and is likely right, use the gradient as it is, and begin the next step
        while ranks agree on it.
        """
        if self._post_validation is None or not self._is_likely:
            return False
        with self._phases("update"):
            self._updater.update_early()
        self._begun = following
        self._post_validation.begin(self.num_steps + 1, *following, reduced.ready)
        return True

    def _use(
        self, reduced: ReducedGradients, factor: float | None, is_updated: bool, epoch: int
    ) -> None:
        """The update that the ranks have agreed on: `factor` times the gradient, or none. One that
        was made already stands, or is taken back with what has begun after it.
        """
        self._is_likely = factor == 1.0
        stands = is_updated and self._is_likely
        if not self._is_likely:  # where the run ends by it nothing may be under way
            self.drop_next()
        with self._phases("update"):
            if is_updated and not stands:
                self._updater.restore(is_last=factor is None)
            if factor is None:
                self._guard.refuse(reduced, epoch, self.num_steps)
            if factor is not None and not stands:
                if factor < 1:
                    reduced.scale(factor)
                self._updater.update(reduced.slots[0])
            self._updater.advance()
