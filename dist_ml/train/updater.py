"""From a reduced gradient to the next parameters, the same wherever ranks hold the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dist_ml.data_parallel.averagers import ParameterAverager
from dist_ml.data_parallel.flat_state import FlatState, Rows
from dist_ml.data_parallel.gradients import places
from dist_ml.partition import Range
from dist_ml.train.optimizer import LRSchedule
from dist_ml.train.optimizer_copy import OptimizerCopy
from dist_ml.train.optimizer_state import OptimizerState
from dist_ml.train.weight_versions import WeightVersions


class Updater:
    """Owns the optimizer, the learning rate, and what makes parameters whole again after an update:
    `gather` for a sharded optimizer, `averager` for local steps; each of them is collective.
    `versions`: of a schedule whose next step uses the weights from before the update, too.
    `owned`: where the optimizer's parameters lie in the flat vector of all (default: one after the
    other).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_schedule: LRSchedule,
        gather: Callable[[], None] | None = None,
        averager: ParameterAverager | None = None,
        versions: WeightVersions | None = None,
        owned: Sequence[Range] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._versions = versions
        self._lr_schedule = lr_schedule
        self._gather = gather
        self._averager = averager
        self._copy = OptimizerCopy(optimizer)
        owned = owned if owned is not None else places(optimizer.param_groups[0]["params"])
        self._optimizer_state = OptimizerState(optimizer, owned, self.rows)

    def update(self, loss: float) -> None:
        """One optimizer step with the gradients as they are; `loss` is the step's mean."""
        self._step()
        if self._averager is not None:
            self._averager.after_update(loss)

    def update_early(self) -> None:
        """As `update`, before the loss is known, which no averager may wait for; what it changes is
        copied first.
        """
        assert self._averager is None
        self._copy.save()
        self._step()

    def restore(self, is_last: bool) -> None:
        """As before `update_early`, to the last bit. Unless this `is_last`, `update` follows, which
        makes parameters whole again.
        """
        self._copy.restore()
        if self._gather is not None and is_last:
            self._gather()

    def _step(self) -> None:
        if self._versions is not None:
            self._versions.update(self.optimizer.step)
        else:
            self.optimizer.step()
        if self._gather is not None:
            self._gather()

    def advance(self) -> None:
        """The learning rate of the next step, whether this one was taken or not."""
        self._lr_schedule.step()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._lr_schedule.learning_rate

    @property
    def rows(self) -> Rows | None:
        """Which replica this is, where each has parameters of its own."""
        return self._averager.rows if self._averager is not None else None

    def diagnostics(self) -> dict[str, float]:
        return self._averager.diagnostics() if self._averager is not None else {}

    def tensors(self) -> list[FlatState]:
        """Optimizer moments, what an averager has under way, an older version of the weights, in
        place.
        """
        under_way = self._averager.tensors() if self._averager is not None else []
        older = self._versions.tensors() if self._versions is not None else []
        return [*self._optimizer_state.tensors(), *under_way, *older]

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer_state.state_dict(),
            "averager": self._averager.state_dict() if self._averager is not None else {},
            "versions": self._versions.state_dict() if self._versions is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any], num_steps: int) -> None:
        """Go on from what `state_dict` returned after `num_steps`, from which the learning rate
        follows.
        """
        self._optimizer_state.load_state_dict(state["optimizer"])
        self._lr_schedule.go_to(num_steps)
        if self._averager is not None:
            self._averager.load_state_dict(state["averager"])
        if self._versions is not None:
            self._versions.load_state_dict(state["versions"])

    def close(self) -> None:
        """Nothing is under way any more. Collective."""
        if self._averager is not None:
            self._averager.close()
