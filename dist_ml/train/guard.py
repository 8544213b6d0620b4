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

    def admits(self, reduced: ReducedGradients, epoch: int, step: int) -> bool:
        """Clip, and tell whether to take the step; where bad steps stop the run, raise
        `NonFiniteError` on all ranks.
        """
        loss = reduced.slots[0]
        if math.isfinite(loss) and self._clip(reduced):
            return True
        if self._nonfinite == "stop":
            raise _nonfinite_error(loss, epoch, step)
        reduced.roll_back()
        return False

    def _clip(self, reduced: ReducedGradients) -> bool:
        """Scale the gradient down to the largest norm allowed; false if it isn't finite."""
        limit = self._clip_norm
        if limit is None and self._nonfinite == "stop":
            return True
        norm = reduced.norm()
        finite = math.isfinite(norm)
        if not reduced.is_agreed:
            finite = self._all(finite)
        if finite and limit is not None and norm > limit:
            reduced.scale(limit / norm)
        return finite

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
