"""Reduction where the gradients lie: in memory that all ranks of the node see, without a copy in or out.

    rank 0's copy  [ a0 | b0 ]      rank 0 reads a0, a1 and writes a0 + a1 to both places
    rank 1's copy  [ a1 | b1 ]      rank 1 reads b0, b1 and writes b0 + b1 to both places

Each rank waits until all have arrived, passes over its range once, and waits until all have passed: it reads n words and writes
n words in all, as if it only scaled its own gradient.
"""

import torch

from dist_ml.comm.allreduce.arenas import Arenas, choose_loops, choose_spins
from dist_ml.comm.allreduce.base import Allreduce, Op, Steps
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array, Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.shared import Patience, SharedArena
from dist_ml.comm.traffic import Words, allreduce_words
from dist_ml.errors import ConfigError
from dist_ml.partition import block

_DONE = 3  # the last stage of `plain_loops.advance`


class SharedMemory(Allreduce):
    """All ranks on one node. Words, crossing from one copy to another: 2n(P-1)/P as the ledger's direct algorithm; no messages.

    Tensors from `allocate` are reduced in place; others are copied into the node's memory and back, before `start` returns.
    `ConfigError` where the ranks are on several nodes. The wire has no meaning here and is accepted: nothing is sent.
    """

    name = "shared_memory"

    def __init__(self, comm: Communicator, wire: WireName = "fp32") -> None:
        super().__init__(comm)
        Wire(wire)
        _check_one_node(comm)
        self.loops = choose_loops()
        self.spins = choose_spins(comm.size)
        self._arenas = Arenas(comm)
        self._last: dict[SharedArena, Reduction] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self._arenas.allocate(n, dtype)

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        array = self.enter(x, op)
        if self.comm.size == 1 or array.size == 0:
            return Request()
        self.comm.traffic.count(self.comm.axis, self.name, self.words(array.size), array.itemsize)
        found = self._arenas.find(array)
        if found is not None:
            return Request([self._begin(*found, array.size, op)], keep=x)
        self._reduce_copy(array, op)
        return Request()

    def steps(self, array: Array, op: Op, tag: int) -> Steps:  # noqa: ARG002
        """None: no messages."""
        return iter(())

    def words(self, n: int) -> Words:
        if self.comm.size == 1:
            return Words(0, 0, 0)
        return allreduce_words(n, block(n, self.comm.size, self.comm.rank).size, self.comm.size)._replace(messages=0)

    def free(self) -> None:
        self._last.clear()
        self._arenas.free()

    def _begin(self, arena: SharedArena, offset: int, n: int, op: Op) -> "Reduction":
        reduction = Reduction(self, arena, offset, n, op, self._last.get(arena))
        self._last[arena] = reduction
        reduction.Test()
        return reduction

    def _reduce_copy(self, array: Array, op: Op) -> None:
        arena = self._arenas.staging(array)
        place = arena.own.numpy()[: array.size]
        place[...] = array
        self._begin(arena, 0, array.size, op).Wait()
        array[...] = place


class Reduction:
    """One reduction on its way: what `Request` calls a pending."""

    stage: int

    def __init__(
        self, family: SharedMemory, arena: SharedArena, offset: int, n: int, op: Op, earlier: "Reduction | None"
    ) -> None:
        mine = block(n, family.comm.size, family.comm.rank)
        dtype = arena.copies.dtype
        self._loops = family.loops
        self._arena = arena
        self._rank = family.comm.rank
        self._ticket = arena.next_ticket()
        self._range = offset + mine.start, offset + mine.stop
        self._divisor = dtype.type(arena.size if op == "mean" else 1)
        self._spins = family.spins
        self._earlier = earlier if earlier is not None and earlier.stage < _DONE else None
        self.stage = 0

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        """Go on as far as possible without waiting; true at the end."""
        return self._go_on(0)

    def Wait(self) -> None:  # noqa: N802
        """Go on to the end; `CommunicationError` when another rank of the node has died."""
        if self._go_on(self._spins):
            return
        patience = Patience(self._arena.peers)
        while not self._go_on(self._spins):
            patience.between_looks()

    def _go_on(self, spins: int) -> bool:
        """An earlier reduction goes first: the flags count reductions, so a rank must finish its ranges in order."""
        if self._earlier is not None:
            if not self._earlier._go_on(spins):
                self._arrive()
                return False
            self._earlier = None
        if self.stage < _DONE:
            start, stop = self._range
            arena = self._arena
            self.stage = self._loops.advance(
                self.stage, arena.copies, arena.rows, arena.flags, self._rank, self._ticket, start, stop, self._divisor, spins
            )
        return self.stage == _DONE


    def _arrive(self) -> None:
        """Tell the others that this rank's elements are ready, although an earlier reduction is still under way."""
        if self.stage == 0:
            self._loops.signal(self._arena.flags, self._rank, self._ticket)
            self.stage = 1


def _check_one_node(comm: Communicator) -> None:
    node = comm.split_by_node()
    size = node.size
    node.free()
    if size != comm.size:
        raise ConfigError(
            f"allreduce=shared_memory needs all {comm.size} ranks of axis {comm.axis} on one node, but this one has {size}; "
            "use allreduce=hierarchical"
        )
