"""The tensors that are too small to be selected from: summed densely, in one message with the
slots.
"""

from collections.abc import Sequence

import numpy as np
import torch

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.flat_state import FlatState
from dist_ml.partition import Range


class SmallTensors:
    """The ranges `places` of the flat gradient, and the slots, summed in one dense allreduce.

    `set_aside` copies a bucket's ranges out before the bucket is overwritten by its sparse sum;
    `reduce` sums and writes them back. With `momentum`, velocity = momentum * velocity + sum takes
    the sum's place, as momentum correction does for what is selected. Words: 2 m (P-1)/P or so, for
    m elements and slots.
    """

    def __init__(
        self,
        flat: Array,
        places: Sequence[Range],
        slots: Array,
        comm: Communicator,
        momentum: float,
    ) -> None:
        self._flat, self._slots, self._comm = flat, slots, comm
        self._momentum = flat.dtype.type(momentum)
        self._copies: list[tuple[Range, Range]] = []  # (among the small elements, in `flat`)
        stop = 0
        for place in places:
            self._copies.append((Range(stop, stop + place.size), place))
            stop += place.size
        self._message = np.zeros(stop + slots.size, flat.dtype)
        self.sums: Array = self._message[:stop]
        self.velocity: Array = np.zeros(stop, flat.dtype)
        self._previous: Array = np.zeros(stop if momentum else 0, flat.dtype)
        self._moved = False

    def set_aside(self, bucket: Range) -> None:
        """Copy what of them lies in `bucket`."""
        for where, place in self._copies:
            if bucket.start <= place.start < bucket.stop:
                self._message[where.slice] = self._flat[place.slice]

    def reduce(self, usable: bool) -> None:
        """Sum them and the slots over the ranks. Collective. Momentum moves only in a step that is
        `usable`, and whose sums are finite.
        """
        self._message[self.sums.size :] = self._slots
        self._comm.allreduce(self._message)
        self._slots[...] = self._message[self.sums.size :]
        self._moved = bool(self._momentum and usable and np.isfinite(self._message).all())
        if self._moved:
            self.velocity, self._previous = self._previous, self.velocity
            np.multiply(self._previous, self._momentum, out=self.velocity)
            self.velocity += self.sums
            self.sums[...] = self.velocity
        for where, place in self._copies:
            self._flat[place.slice] = self.sums[where.slice]

    def tensors(self) -> list[FlatState]:
        """The momentum, where there is any: the same on all ranks."""
        velocity = torch.from_numpy(self.velocity)
        return [
            FlatState("momentum/{}", place, velocity[where.slice])
            for where, place in self._copies
            if self._momentum
        ]

    def roll_back(self) -> None:
        """The momentum as it was before the last `reduce`."""
        if self._moved:
            self.velocity, self._previous = self._previous, self.velocity
            self._moved = False
