"""What a sparse exchange leaves behind: a sum of which few elements are not zero."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.data_parallel.gradients import GradientBuffer
from dist_ml.data_parallel.reduced_gradients import Counted, Full


class SparseGradients(Full):
    """The summed selection and the small tensors, in the flat buffer.

    `nonzero`: the values that are not zero, once each, where they are known apart: the norm then
    costs a pass over these few only. `undo`: takes back what the exchange remembers; None where the
    step has left no trace.
    """

    def __init__(
        self,
        gradients: GradientBuffer,
        nonzero: Sequence[Array] | None,
        undo: Callable[[], None] | None,
    ) -> None:
        super().__init__(gradients.flat, gradients.slots)
        self._nonzero = nonzero
        self._undo = undo
        self._factor = 1.0

    def norm(self, counted: Counted = ()) -> float:
        if self._nonzero is None or counted:
            return super().norm(counted)
        with np.errstate(over="ignore", invalid="ignore"):
            square = sum(float(np.dot(values, values)) for values in self._nonzero)
        return self._factor * math.sqrt(square) if square >= 0 else math.nan

    def scale(self, factor: float) -> None:
        super().scale(factor)
        self._factor *= factor

    def roll_back(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
