"""Is a step's gradient fit to use? Clipping, and what happens where it isn't finite."""

import math
from typing import Literal

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.errors import NonFiniteError

Nonfinite = Literal["stop", "skip"]


class Guard:
    """Decides, the same on all ranks of `world`, whether a step is taken.

    Looking at the norm costs a pass over the gradient. Where non-finite steps stop the run and
    nothing is clipped, the loss tells alone: a bad gradient shows in the next step's.

    Local steps (`is_agreed` false) clip each node's gradient by its own norm; whether all of them
    are finite is then asked of all ranks, one word, since whoever leaves out a step alone would
    send its next parameters when nobody expects them.
    """

    def __init__(self, world: Communicator, clip_norm: float | None, nonfinite: Nonfinite) -> None:
        self._world = world
        self._clip_norm = clip_norm
        self._nonfinite = nonfinite

    @property
    def reads_norm(self) -> bool:
        """Whether the gradient's norm is asked for in each step."""
        return self._clip_norm is not None or self._nonfinite == "skip"

    def factor(self, reduced: ReducedGradients) -> float | None:
        """What to multiply the gradient with, 1 or less, so that its norm is allowed; None where
        the loss or the gradient isn't finite. Collective.
        """
        if not math.isfinite(reduced.slots[0]):
            return None
        if not self.reads_norm:
            return 1.0
        norm, limit = reduced.norm(), self._clip_norm
        finite = math.isfinite(norm)
        if not reduced.is_agreed:
            finite = self._all(finite)
        if not finite:
            return None
        return limit / norm if limit is not None and norm > limit else 1.0

    def refuse(self, reduced: ReducedGradients, epoch: int, step: int) -> None:
        """The step is not finite: leave it out, or, where that stops the run, raise
        `NonFiniteError` on all ranks.
        """
        if self._nonfinite == "stop":
            raise _nonfinite_error(reduced.slots[0], epoch, step)
        reduced.roll_back()

    def _all(self, holds: bool) -> bool:
        flag = np.array([holds], np.int32)
        self._world.allreduce(flag, "min")
        return bool(flag[0])


def _nonfinite_error(loss: float, epoch: int, step: int) -> NonFiniteError:
    error = NonFiniteError(
        f"the loss is {loss} in epoch {epoch}, step {step} on all ranks, or its gradient is not "
        "finite: lower optimizer.lr, set clip_norm, or skip such steps with nonfinite=skip"
    )
    error.agreed = True
    return error
