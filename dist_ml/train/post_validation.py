"""The next step's first forward passes, run while the ranks agree on the step ahead of it."""

from collections.abc import Callable, Sequence

from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.schedule import Action
from dist_ml.train.pipeline_step import PipelineStages


class PostValidation:
    """Begins steps before the step ahead is validated (`pipeline_parallel/post_validation.py`), on
    `rank` of the pipeline; `ahead` are the actions of each rank that may run so early.

    `looks`: before each action and while it waits for what others send, look whether the ranks have
    agreed, and then run no more; so a rank that has stopped leaves no other one waiting, whatever
    is done between the steps. Ranks that run an action together must not look, since some would see
    it sooner than others: all of them run all of it.
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
        self._num_samples, self._num_run = 0, 0

    def begin(self, number: int, epoch: int, index: int, agreed: Callable[[], bool]) -> None:
        """Begin optimizer step `number`, batch `index` of `epoch`, and run what may run ahead,
        until all has or the ranks have `agreed`.
        """
        self._num_samples = self._stages.begin(number, epoch, index, self._all)
        self._num_run = 0
        for action in self._own:
            if self._looks and not self._stages.arrives(action, agreed):
                break
            self._executor.run(self._num_run, self._num_run + 1)
            self._num_run += 1

    def go_on(self) -> tuple[int, int]:
        """The step goes on: its samples, over all ranks, and how many of its actions have run."""
        self._stages.go_on()
        return self._num_samples, self._num_run

    def discard(self) -> None:
        """The step has not begun: what ran counts for nothing. All ranks of the pipeline."""
        self._stages.discard(self._own[self._num_run :], self._all)
