"""A step's loss and metrics from the last stage of a pipeline to all others, and the other way who
was told to stop, without a moment at which all of them meet.
"""

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.data_parallel.reduced_gradients import Counted, ReducedGradients


class SlotRelay:
    """Each stage has the sums from the one after it and hands them on to the one before; how many
    ranks were told to stop, the last of the sums, travels to the last stage first.

        stage 0        told ─┐              step t, told: all know
        stage 1              └ told ─┐           ▲ sums
        last stage                   └ told ─────┘
                       step t - 2    t - 1       t

    Where a step's actions run into the next step's, stage s ends a step one backward pass after
    stage s + 1: the sums are there by then, and nobody waits. So does nobody for what stage s - 1
    was told up to the step before, which it sent ahead of activations that this step has used. What
    stage s of D is told all know D - 1 - s steps later, after the same step.

    `drains`: the step leaves the pipe empty, and nothing under way. Rank s of `comm` holds stage s;
    the messages have a communicator of their own. Words: the slots from each rank but the first,
    and one word from each but the last. Making one is collective.
    """

    def __init__(self, comm: Communicator) -> None:
        own = comm.split(0)
        assert own is not None
        self._comm = own
        self._told = np.zeros(1)  # that stages before this one were, up to the step before
        self._under_way: list[Request] = []
        self.drains = False

    def __call__(self, reduced: ReducedGradients) -> "RelayedGradients":
        """`reduced` with the last stage's slots. In the order of steps on all ranks."""
        self.finish()  # of the step before
        slots, rank = np.array(reduced.slots, np.float64), self._comm.rank
        slots[-1] += self._told[0]
        if rank + 1 < self._comm.size:
            self._under_way.append(self._comm.isend(slots[-1:].copy(), rank + 1))
            self._comm.receive(slots, rank + 1)
        if rank > 0:
            self._under_way.append(self._comm.isend(slots, rank - 1))
            self._under_way.append(self._comm.ireceive(self._told, rank - 1))
        if self.drains:
            self.finish()
        return RelayedGradients(reduced, slots.tolist())

    def finish(self) -> None:
        """What was sent has arrived. Collective."""
        while self._under_way:
            self._under_way.pop().wait()

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
