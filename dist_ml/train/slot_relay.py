"""A step's loss and metrics from the last stage of a pipeline to all others, without a moment at
which all of them meet.
"""

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.data_parallel.reduced_gradients import Counted, ReducedGradients


class SlotRelay:
    """Each stage has the sums from the one after it and hands them on to the one before.

    Where a step's actions run into the next step's, stage s ends a step one backward pass after
    stage s + 1: the sums are there by then, and nobody waits. Rank s of `comm` holds stage s; the
    messages have a communicator of their own. Words: one message of the slots from each rank but
    the first. Making one is collective.
    """

    def __init__(self, comm: Communicator) -> None:
        own = comm.split(0)
        assert own is not None
        self._comm = own
        self._sent = Request()

    def __call__(self, reduced: ReducedGradients) -> "RelayedGradients":
        """`reduced` with the last stage's slots. In the order of steps on all ranks."""
        slots, rank = np.array(reduced.slots, np.float64), self._comm.rank
        if rank + 1 < self._comm.size:
            self._comm.receive(slots, rank + 1)
        self.finish()
        if rank > 0:
            self._sent = self._comm.isend(slots, rank - 1)
        return RelayedGradients(reduced, slots.tolist())

    def finish(self) -> None:
        """What was sent has arrived."""
        self._sent.wait()

    def close(self) -> None:
        """Give back its communicator. Collective."""
        self.finish()
        self._comm.free()


class RelayedGradients(ReducedGradients):
    """This rank's part of the gradient; nobody asks the other ranks for the norm."""

    def __init__(self, inner: ReducedGradients, slots: list[float]) -> None:
        self._inner, self._slots = inner, slots
        self.is_agreed = inner.is_agreed

    def norm(self, counted: Counted = ()) -> float:  # noqa: ARG002
        raise AssertionError("the ranks would have to wait for each other")

    def scale(self, factor: float) -> None:
        self._inner.scale(factor)

    def roll_back(self) -> None:
        self._inner.roll_back()
