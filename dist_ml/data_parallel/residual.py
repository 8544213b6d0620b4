"""What was not sent yet: error feedback, plain or with momentum correction.

The invariant, on every rank and at every moment: what was sent + residual = the sum of all
gradients so far (with momentum correction: of all velocities), to the last bit for the part that is
sent in a step.
"""

from collections.abc import Sequence

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.entries import Entries
from dist_ml.data_parallel.selection_kernels import Extracted, emit, kernels
from dist_ml.errors import NonFiniteError
from dist_ml.partition import Range


class Residual:
    """Error feedback over some ranges of a flat vector (float32 or float64) of which each rank has
    its own.

    `values` is the residual of the whole vector, which others may share; `ranges` must ascend and
    be disjoint (default: everything). Indices are those of the whole vector.
    """

    def __init__(self, values: Array, ranges: Sequence[Range] | None = None) -> None:
        self.values = values
        self.ranges = list(ranges) if ranges is not None else [Range(0, values.size)]
        self.length = sum(part.size for part in self.ranges)

    def accumulate(
        self, gradient: Array, threshold: float, capacity: int, scale: float = 1.0
    ) -> Extracted:
        """Add `scale * gradient`, and take what reaches `threshold` in magnitude, at most
        `capacity` entries: one fused pass.

        If an element is not finite the step is undone (`undo`) and `NonFiniteError` raised, on this
        rank only.
        """
        taken = self._accumulate(gradient, threshold, capacity, scale)
        if taken.bad:
            self.undo(gradient, [taken.entries], scale)
            raise NonFiniteError("a gradient is NaN or infinite")
        return taken

    def sweep(self, threshold: float, capacity: int) -> Extracted:
        """Take what reaches `threshold`, without adding anything."""
        limit = self.values.dtype.type(threshold)
        return emit(
            self.ranges,
            self.values.dtype,
            capacity,
            lambda part, indices, values: kernels().sweep(
                self.values[part.slice], limit, indices, values, part.start
            ),
        )

    def restore(self, entries: Entries) -> None:
        """Add entries again: dropped by a selection, lost in rounding, or returned by an exchange.
        Indices may repeat. What would not be finite stays as it is.
        """
        if entries.size:
            kernels().add_at(self.values, entries.indices, entries.values)

    def mask_momentum(self, indices: Array) -> None:
        """The elements at `indices` are in the result of this step: forget their momentum, where
        there is one.
        """

    def unmask_momentum(self) -> None:
        """As before the last `mask_momentum`."""

    def undo(self, gradient: Array, taken: Sequence[Entries], scale: float = 1.0) -> None:
        """As before `accumulate`, up to its rounding."""
        for entries in taken:
            self.values[entries.indices] = entries.values
        for part in self.ranges:
            _subtract(self.values[part.slice], gradient[part.slice], scale)

    def sample_magnitudes(
        self, at: Array, gradient: Array | None = None, scale: float = 1.0
    ) -> Array:
        """Magnitudes at positions `at` of the concatenated ranges: as they are, or as `accumulate`
        would find them.
        """
        where = self._positions(at)
        with np.errstate(invalid="ignore", over="ignore"):
            magnitudes: Array = np.abs(
                self.values[where] if gradient is None else self._next(gradient, where, scale)
            )
        return magnitudes

    def norm(self) -> float:
        """The Euclidean norm, in float64."""
        squares = (np.dot(part, part) for part in (self.values[part.slice] for part in self.ranges))
        return float(np.sqrt(sum(float(square) for square in squares)))

    def _accumulate(
        self, gradient: Array, threshold: float, capacity: int, scale: float
    ) -> Extracted:
        kind = self.values.dtype.type
        return emit(
            self.ranges,
            self.values.dtype,
            capacity,
            lambda part, indices, values: kernels().accumulate(
                gradient[part.slice],
                kind(scale),
                self.values[part.slice],
                kind(threshold),
                indices,
                values,
                part.start,
            ),
        )

    def _next(self, gradient: Array, where: Array, scale: float) -> Array:
        total: Array = self.values[where] + self.values.dtype.type(scale) * gradient[where]
        return total

    def _positions(self, at: Array) -> Array:
        ends = np.cumsum([part.size for part in self.ranges])
        shifts: Array = np.array([part.stop for part in self.ranges]) - ends
        where: Array = at + shifts[np.searchsorted(ends, at, side="right")]
        return where


class MomentumResidual(Residual):
    """Momentum correction (DGC, Lin et al., ICLR 2018, section 3.1).

    velocity = momentum * velocity + gradient; residual += velocity. At density 1 that is the
    optimizer's own momentum, which must then be 0. `mask_momentum` is DGC's factor masking (section
    3.2): where the residual was sent the velocity becomes zero too, so that stale momentum does not
    carry a delayed element on. An element that is sent often then has hardly any: at density 1,
    none.
    """

    def __init__(
        self, values: Array, momentum: float, velocity: Array, ranges: Sequence[Range] | None = None
    ) -> None:
        super().__init__(values, ranges)
        self.momentum = momentum
        self.velocity = velocity
        self._masked = Entries.none(values.dtype)

    def mask_momentum(self, indices: Array) -> None:
        self._masked = Entries(indices, self.velocity[indices])
        self.velocity[indices] = 0

    def unmask_momentum(self) -> None:
        self.velocity[self._masked.indices] = self._masked.values
        self._masked = self._masked.part(0, 0)

    def undo(self, gradient: Array, taken: Sequence[Entries], scale: float = 1.0) -> None:
        for entries in taken:
            self.values[entries.indices] = entries.values
        for part in self.ranges:
            velocity = self.velocity[part.slice]
            _subtract(self.values[part.slice], velocity, 1.0)
            added = _subtract(velocity, gradient[part.slice], scale)
            velocity[added] /= self.momentum

    def _accumulate(
        self, gradient: Array, threshold: float, capacity: int, scale: float
    ) -> Extracted:
        kind = self.values.dtype.type
        return emit(
            self.ranges,
            self.values.dtype,
            capacity,
            lambda part, indices, values: kernels().accumulate_momentum(
                gradient[part.slice],
                kind(scale),
                self.velocity[part.slice],
                kind(self.momentum),
                self.values[part.slice],
                kind(threshold),
                indices,
                values,
                part.start,
            ),
        )

    def _next(self, gradient: Array, where: Array, scale: float) -> Array:
        kind = self.values.dtype.type
        total: Array = self.values[where] + (
            kind(self.momentum) * self.velocity[where] + kind(scale) * gradient[where]
        )
        return total


def _subtract(total: Array, addend: Array, scale: float) -> Array:
    """total -= scale * addend where a pass added it, that is, where their sum is finite; and where
    that was.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = total.dtype.type(scale) * addend
        added: Array = np.isfinite(total + scaled)
        total[added] -= scaled[added]
    return added
