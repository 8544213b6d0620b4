"""Where the index space is cut so that every rank owns about as many selected entries."""

from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.entries import Entries
from dist_ml.partition import blocks


class BalancedRegions:
    """P consecutive regions, cut anew every `period` calls at the mean of the cuts that would deal
    each rank's entries evenly.

    Gradients are denser in some layers than in others, and stay so for many steps (Ok-Topk, PPoPP
    2022, section 3.1.1). A renewal is an allreduce of P words of 8 bytes: cuts are summed in 64
    bits, because n P does not fit 32. Ranks without entries don't vote.
    """

    def __init__(self, comm: Communicator, length: int, period: int) -> None:
        self._comm = comm
        self._length = length
        self._period = period
        self._age = 0
        self.boundaries: Array = np.array(
            [0, *(region.stop for region in blocks(length, comm.size))], dtype=np.int64
        )

    def renew(self, own: Entries) -> None:
        """Cut anew if it is time. Collective."""
        if self._age % self._period == 0:
            self._cut(own)
        self._age += 1

    def state_dict(self) -> dict[str, Any]:
        return {"age": self._age, "boundaries": self.boundaries.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Boundaries of another number of ranks are forgotten, and cut anew at the next call."""
        if len(state["boundaries"]) != self._comm.size + 1:
            self._age = 0
            return
        self._age = state["age"]
        self.boundaries = np.array(state["boundaries"], dtype=np.int64)

    def _cut(self, own: Entries) -> None:
        size = self._comm.size
        votes = np.zeros(size, np.int64)
        if own.size:
            votes[:-1] = own_cuts(own.indices, size, self._length)
            votes[-1] = 1
        self._comm.allreduce(votes)
        if votes[-1]:
            self.boundaries[1:-1] = votes[:-1] // votes[-1]


def own_cuts(indices: Array, num_regions: int, length: int) -> Array:
    """The inner boundaries that deal `indices` evenly, in order, to the regions (int64, num_regions
    - 1).
    """
    starts = np.array(
        [region.start for region in blocks(indices.size, num_regions)][1:], dtype=np.int64
    )
    beyond = np.append(indices, length)
    return beyond[starts].astype(np.int64)
