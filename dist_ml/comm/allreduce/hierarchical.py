"""Shared memory inside the node, messages between nodes, and every rank of a node carries its share
of the wire.

Two nodes of two ranks; the vector is cut into as many shares as a node has ranks, and rank i of
every node looks after share i:

    1  all ranks of a node have arrived
    2  rank i adds up share i over the copies of its node, into its own copy     (memory)
    3  rank i reduces share i with rank i of the other nodes      (messages: ring,
                                                                or rabenseifner for a short share)
    4  rank i writes share i to all copies of its node                           (memory)
    5  all ranks of the node have written

Where nodes have different numbers of ranks there are as many shares as the smallest has, and its
other ranks only monitor. Jia et al., "Highly scalable deep learning training system with
mixed-precision", arXiv 1807.11205, section 3.3, with shared memory in place of the reductions and
broadcasts inside the node.
"""

import torch

from dist_ml.comm.allreduce.base import Allreduce, Op
from dist_ml.comm.allreduce.generator_request import GeneratorRequest, Steps
from dist_ml.comm.allreduce.rabenseifner import Rabenseifner, rabenseifner_steps
from dist_ml.comm.allreduce.ring import Local, Ring, ring_steps
from dist_ml.comm.allreduce.shared_buffers import (
    FlagsReached,
    SharedBuffers,
    choose_loops,
    choose_spins,
)
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array, Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.shared_buffer import SharedBuffer
from dist_ml.comm.traffic import Words
from dist_ml.partition import Range, block

RING_FROM_BYTES = (
    1 << 18
)  # shares at least this long go around a ring; shorter ones are cheaper in fewer messages


class Hierarchical(Allreduce):
    """Words sent to other nodes: those of a ring (or rabenseifner) over the H nodes with n / R
    elements, R ranks a node.

    A node sends 2n(H-1)/H in all, however many ranks it has. Tensors from `allocate` are reduced in
    place; others are copied into the node's memory and back, before `start` returns.
    """

    name = "hierarchical"

    def __init__(self, comm: Communicator, wire: WireName = "fp32") -> None:
        super().__init__(comm)
        self.wire = Wire(wire)
        self.intra_node = comm.split_by_node(axis=comm.axis)
        self.num_shares = min(comm.allgather_objects(self.intra_node.size))
        inter_node = comm.split(
            self.intra_node.rank if self.intra_node.rank < self.num_shares else None
        )
        self.inter_node: Communicator | None = inter_node
        self._loops = choose_loops()
        self._spins = choose_spins(self.intra_node.size)
        self._shared = SharedBuffers(self.intra_node)
        self._last: dict[SharedBuffer, Request] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self._shared.allocate(n, dtype)

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        array = self.enter(x, op)
        self.wire.check(array.dtype)
        if self.comm.size == 1 or array.size == 0:
            return Request()
        found = self._shared.find(array)
        if found is not None:
            return self._begin(*found, array.size, op)
        self._reduce_copy(array, op)
        return Request()

    def words(self, n: int, item_bytes: int = 4) -> Words:
        """What this rank sends to other nodes."""
        if self.inter_node is None or self.inter_node.size == 1:
            return Words(0, 0, 0)
        share = block(n, self.num_shares, self.share_index).size
        if self._by_ring(share, item_bytes):
            return Ring(self.inter_node, self.wire.name).words(share, item_bytes)
        return Rabenseifner(self.inter_node, self.wire.name).words(share)

    @property
    def share_index(self) -> int:
        """Which share this rank looks after; beyond `num_shares` it has none."""
        return self.intra_node.rank

    def free(self) -> None:
        self._last.clear()
        self._shared.free()
        for comm in (self.inter_node, self.intra_node):
            if comm is not None:
                comm.free()

    def _begin(self, shared: SharedBuffer, offset: int, n: int, op: Op) -> Request:
        record = self.record(n, shared.copies.itemsize, op)
        epoch, tag = shared.next_epoch(), self.next_tag(n)
        self._loops.signal(shared.flags, self.intra_node.rank, epoch)
        steps = self._node_steps(
            shared, Range(offset, offset + n), op, epoch, tag, self._last.get(shared)
        )
        request = GeneratorRequest(steps, self.comm, self.name)
        request.Test()
        self._last[shared] = Request([request]).recorded(record)
        return self._last[shared]

    def _node_steps(
        self,
        shared: SharedBuffer,
        where: Range,
        op: Op,
        epoch: int,
        tag: int,
        earlier: Request | None,
    ) -> Steps:
        """Steps 2 to 5 of the drawing; the flags count reductions, so an earlier one ends first."""
        if earlier is not None:
            yield earlier
        yield self._reached(shared, 0, epoch)
        if self.inter_node is not None:
            share = block(where.size, self.num_shares, self.share_index)
            mine = Range(where.start + share.start, where.start + share.stop)
            divisor = self.comm.size if op == "mean" else 1
            yield from self._inter_node_steps(self.inter_node, shared, mine, divisor, tag)
        self._loops.signal(shared.flags, self.intra_node.size + self.intra_node.rank, epoch)
        yield self._reached(shared, self.intra_node.size, epoch)

    def _inter_node_steps(
        self, inter_node: Communicator, shared: SharedBuffer, mine: Range, divisor: int, tag: int
    ) -> Steps:
        """Steps 2 to 4: around a ring the memory's work goes on while other segments are on the
        wire.
        """
        array = shared.copies[self.intra_node.rank, mine.slice]

        def prepare(part: Range) -> None:
            own = Range(mine.start + part.start, mine.start + part.stop)
            self._loops.reduce(
                shared.copies,
                shared.rows,
                own.start,
                own.stop,
                shared.copies.dtype.type(1),
                self.intra_node.rank,
            )

        def finish(part: Range) -> None:
            for rank in range(self.intra_node.size):
                if rank != self.intra_node.rank:
                    shared.copies[rank, mine.start + part.start : mine.start + part.stop] = array[
                        part.slice
                    ]

        whole = Range(0, mine.size)
        if inter_node.size > 1 and self._by_ring(mine.size, array.itemsize):
            segment_words = Ring(inter_node, self.wire.name).segment_words(array.itemsize)
            local = Local(prepare, finish)
            yield from ring_steps(inter_node, array, divisor, tag, self.wire, segment_words, local)
            return
        prepare(whole)
        if inter_node.size > 1 and mine.size:
            yield from rabenseifner_steps(inter_node, array, "sum", tag, self.wire)
        if divisor != 1:
            array /= divisor
        finish(whole)

    def _by_ring(self, share: int, item_bytes: int) -> bool:
        return share * item_bytes >= RING_FROM_BYTES

    def _reached(self, shared: SharedBuffer, first: int, epoch: int) -> Request:
        return Request([FlagsReached(self._loops, shared, first, epoch, self._spins)])

    def _reduce_copy(self, array: Array, op: Op) -> None:
        shared = self._shared.staging(array)
        place = shared.own.numpy()[: array.size]
        place[...] = array
        self._begin(shared, 0, array.size, op).wait()
        array[...] = place
