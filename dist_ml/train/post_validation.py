"""The next step's first forward passes, run while the ranks agree on the step ahead of it."""

from collections.abc import Callable, Sequence

from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.schedule import Action
from dist_ml.train.pipeline_step import PipelineStages


class PostValidation:
    """Begins steps before the step ahead is validated (`pipeline_parallel/post_validation.py`), on
    `rank` of the pipeline; `ahead` are the actions of each rank that may run so early.

    `looks`: between actions, look whether the ranks have agreed, and then run no more. Ranks that
    run an action together must not, since some would see it sooner than others.
    """

    def __init__(
        self,
        stages: PipelineStages,
        executor: Executor,
        ahead: Sequence[Sequence[Action]],
        rank: int,
        looks: bool,
    ) -> None:
        self._stages, self._executor, self._looks = stages, executor, looks
        self._own = tuple(ahead[rank])
        self._all = frozenset(action for actions in ahead for action in actions)
        self._batch, self._num_samples, self._num_run = (0, 0), 0, 0
        self.has_begun = False

    def begin(self, number: int, epoch: int, index: int, agreed: Callable[[], bool]) -> None:
        """Begin optimizer step `number`, batch `index` of `epoch`, and run what may run ahead,
        until all has or the ranks have `agreed`.
        """
        self._batch = epoch, index
        self._num_samples = self._stages.begin(number, epoch, index, self._all)
        self._num_run, self.has_begun = 0, True
        while self._num_run < len(self._own) and not (self._looks and agreed()):
            self._executor.run(self._num_run, self._num_run + 1)
            self._num_run += 1

    def go_on(self, epoch: int, index: int) -> tuple[int, int]:
        """The step on this batch goes on: its samples, over all ranks, and how many of its actions
        have run.
        """
        assert (epoch, index) == self._batch, f"{self._batch} has begun: run or drop it first"
        self._stages.go_on()
        self.has_begun = False
        return self._num_samples, self._num_run

    def discard(self) -> None:
        """The step has not begun: what ran counts for nothing. All ranks of the pipeline."""
        self._stages.discard(self._own[self._num_run :], self._all)
        self.has_begun = False
