"""Reduction where the gradients lie: in memory that all ranks of the node see, without a copy in or
out.

    rank 0's copy  [ a0 | b0 ]      rank 0 reads a0, a1 and writes a0 + a1 to both places
    rank 1's copy  [ a1 | b1 ]      rank 1 reads b0, b1 and writes b0 + b1 to both places

Each rank waits until all have arrived, passes over its range once, and waits until all have passed:
it reads n words and writes n words in all, as if it only scaled its own gradient.
"""

from collections.abc import Callable
from time import monotonic_ns
from types import ModuleType
from typing import Any, NamedTuple

import torch

from dist_ml import compiled
from dist_ml.comm.allreduce.base import Allreduce, Op
from dist_ml.comm.allreduce.shared_buffers import SharedBuffers, choose_loops, choose_spins
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array, Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.node_staging import NodeStaging
from dist_ml.comm.peer_monitor import PeerMonitor
from dist_ml.comm.request import Request
from dist_ml.comm.shared_buffer import SharedBuffer
from dist_ml.comm.traffic import Words, allreduce_words
from dist_ml.errors import ConfigError
from dist_ml.flight.recorder import ENDED
from dist_ml.partition import block

_DONE = 3  # the last stage of `plain_loops.advance`


class SharedMemory(Allreduce):
    """All ranks on one node. Words, crossing from one copy to another: 2n(P-1)/P as the ledger's
    direct algorithm; no messages.

    Tensors from `allocate` are reduced in place; others pass through the node's memory in chunks,
    before `start` returns. `ConfigError` where the ranks are on several nodes. The wire has no
    meaning here and is accepted: nothing is sent.
    """

    name = "shared_memory"

    def __init__(self, comm: Communicator, wire: WireName = "fp32") -> None:
        super().__init__(comm)
        Wire(wire)
        _check_one_node(comm)
        self.loops = choose_loops()
        self.spins = choose_spins(comm.size)
        self._shared = SharedBuffers(comm)
        self._staging: NodeStaging | None = None  # of other tensors, once there is one
        self._last: dict[SharedBuffer, Reduction] = {}
        self._plans: dict[tuple[int, int, torch.dtype, Op], Plan] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self._shared.allocate(n, dtype)

    def __call__(self, x: Tensor, op: Op = "sum") -> None:
        """Reduce `x` in place. What was worked out for a tensor of `allocate` is kept, because
        short ones are over in 2 µs.
        """
        plan = None
        if isinstance(x, torch.Tensor) and x.is_contiguous() and not self.comm.compares_calls:
            plan = self._plans.get((x.data_ptr(), x.numel(), x.dtype, op))
        if plan is None or self._busy(plan.shared):
            self.start(x, op).wait()
            return
        self.comm.traffic.count(self.comm.axis, self.name, plan.words, plan.word_bytes)
        record = self.record(plan.n, plan.word_bytes, op)
        epoch = plan.shared.next_epoch()
        stage = plan.advance(0, *plan.place, epoch, *plan.share, plan.spins)
        if stage < _DONE:
            Reduction(plan, epoch, stage).Wait()
        record[ENDED] = monotonic_ns()

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        array = self.enter(x, op)
        if self.comm.size == 1 or array.size == 0:
            return Request()
        self.comm.traffic.count(self.comm.axis, self.name, self.words(array.size), array.itemsize)
        record = self.record(array.size, array.itemsize, op)
        found = self._shared.find(array)
        if found is not None:
            plan = self._plan(*found, array.size, op)
            if isinstance(x, torch.Tensor):
                self._plans[x.data_ptr(), x.numel(), x.dtype, op] = plan
            return Request([self._begin(plan)], keep=x).recorded(record)
        self._reduce_copy(array, op)
        record[ENDED] = monotonic_ns()
        return Request()

    def words(self, n: int, item_bytes: int = 4) -> Words:  # noqa: ARG002
        if self.comm.size == 1:
            return Words(0, 0, 0)
        return allreduce_words(
            n, block(n, self.comm.size, self.comm.rank).size, self.comm.size
        )._replace(messages=0)

    def free(self) -> None:
        self._last.clear()
        self._plans.clear()
        self._shared.free()
        if self._staging is not None:
            self._staging.free()

    def _plan(self, shared: SharedBuffer, offset: int, n: int, op: Op) -> "Plan":
        mine = block(n, self.comm.size, self.comm.rank)
        divisor = shared.copies.dtype.type(self.comm.size if op == "mean" else 1)
        place = shared.copies, shared.rows, shared.flags, self.comm.rank
        share = offset + mine.start, offset + mine.stop, divisor
        return Plan(
            self.loops,
            self.loops.advance,
            shared,
            place,
            share,
            self.spins,
            self.words(n),
            shared.copies.itemsize,
            n,
        )

    def _begin(self, plan: "Plan") -> "Reduction":
        reduction = Reduction(plan, plan.shared.next_epoch(), earlier=self._last.get(plan.shared))
        self._last[plan.shared] = reduction
        reduction.Test()
        return reduction

    def _busy(self, shared: SharedBuffer) -> bool:
        last = self._last.get(shared)
        return last is not None and last.stage < _DONE

    def _reduce_copy(self, array: Array, op: Op) -> None:
        """Chunk by chunk; by the plain loops whole."""
        if self._staging is None and compiled.available():
            self._staging = NodeStaging(self.comm)
        if self._staging is not None:
            self._staging.allreduce(array, self.comm.size if op == "mean" else 1)
            return
        shared = self._shared.staging(array)
        place = shared.own.numpy()[: array.size]
        place[...] = array
        self._begin(self._plan(shared, 0, array.size, op)).Wait()
        array[...] = place


class Plan(NamedTuple):
    """All that this rank needs to know to reduce one part of an shared."""

    loops: ModuleType
    advance: Callable[..., int]
    shared: SharedBuffer
    # copies, rows, flags, rank: the arguments of `advance` before the epoch
    place: tuple[Any, ...]
    share: tuple[Any, ...]  # start, stop, divisor: those after it
    spins: int
    words: Words
    word_bytes: int
    n: int  # elements


class Reduction:
    """One reduction on its way: what `Request` calls a pending."""

    __slots__ = ("_earlier", "_epoch", "_plan", "stage")

    stage: int

    def __init__(
        self, plan: Plan, epoch: int, stage: int = 0, earlier: "Reduction | None" = None
    ) -> None:
        self._plan = plan
        self._epoch = epoch
        self._earlier = earlier if earlier is not None and earlier.stage < _DONE else None
        self.stage = stage

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        """Go on as far as possible without waiting; true at the end."""
        return self._go_on(0)

    def Wait(self) -> None:  # noqa: N802
        """Go on to the end; `CommunicationError` when another rank of the node has died."""
        spins = self._plan.spins
        if self._go_on(spins):
            return
        monitor = PeerMonitor(self._plan.shared.peers)
        while not self._go_on(spins):
            monitor.between_looks()

    def _go_on(self, spins: int) -> bool:
        """An earlier reduction goes first: the flags count reductions, so a rank must finish its
        ranges in order.
        """
        plan = self._plan
        if self._earlier is not None:
            if not self._earlier._go_on(spins):
                if (
                    self.stage == 0
                ):  # but the others may know already that this rank's elements are ready
                    plan.loops.signal(plan.shared.flags, plan.place[3], self._epoch)
                    self.stage = 1
                return False
            self._earlier = None
        if self.stage < _DONE:
            self.stage = plan.advance(self.stage, *plan.place, self._epoch, *plan.share, spins)
        return self.stage == _DONE


def _check_one_node(comm: Communicator) -> None:
    node = comm.split_by_node()
    size = node.size
    node.free()
    if size != comm.size:
        raise ConfigError(
            f"allreduce=shared_memory needs all {comm.size} ranks of axis {comm.axis} on one "
            f"node, but this one has {size}; "
            "use allreduce=hierarchical"
        )
