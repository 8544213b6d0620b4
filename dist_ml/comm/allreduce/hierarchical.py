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

Where nodes have different numbers of ranks there are as many rails as the smallest has, and its
other ranks only watch. Jia et al., "Highly scalable deep learning training system with
mixed-precision", arXiv 1807.11205, section 3.3, with shared memory in place of the reductions and
broadcasts inside the node.
"""

import torch

from dist_ml.comm.allreduce.arenas import Arenas, FlagsReached, choose_loops, choose_spins
from dist_ml.comm.allreduce.base import Allreduce, Op, Stepping, Steps
from dist_ml.comm.allreduce.rabenseifner import Rabenseifner, rabenseifner_steps
from dist_ml.comm.allreduce.ring import Local, Ring, ring_steps
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array, Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.shared import SharedArena
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
        self.node = comm.split_by_node(axis=comm.axis)
        self.num_rails = min(comm.allgather_objects(self.node.size))
        rail = comm.split(self.node.rank if self.node.rank < self.num_rails else None)
        self.rail: Communicator | None = rail
        self._loops = choose_loops()
        self._spins = choose_spins(self.node.size)
        self._arenas = Arenas(self.node)
        self._last: dict[SharedArena, Request] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self._arenas.allocate(n, dtype)

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        array = self.enter(x, op)
        self.wire.check(array.dtype)
        if self.comm.size == 1 or array.size == 0:
            return Request()
        found = self._arenas.find(array)
        if found is not None:
            return self._begin(*found, array.size, op)
        self._reduce_copy(array, op)
        return Request()

    def words(self, n: int, item_bytes: int = 4) -> Words:
        """What this rank sends to other nodes."""
        if self.rail is None or self.rail.size == 1:
            return Words(0, 0, 0)
        share = block(n, self.num_rails, self.rail_index).size
        if self._by_ring(share, item_bytes):
            return Ring(self.rail, self.wire.name).words(share, item_bytes)
        return Rabenseifner(self.rail, self.wire.name).words(share)

    @property
    def rail_index(self) -> int:
        """Which share this rank looks after; beyond `num_rails` it has none."""
        return self.node.rank

    def free(self) -> None:
        self._last.clear()
        self._arenas.free()
        for comm in (self.rail, self.node):
            if comm is not None:
                comm.free()

    def _begin(self, arena: SharedArena, offset: int, n: int, op: Op) -> Request:
        ticket = arena.next_ticket()
        self._loops.signal(arena.flags, self.node.rank, ticket)
        steps = self._node_steps(
            arena, Range(offset, offset + n), op, ticket, self._last.get(arena)
        )
        stepping = Stepping(steps, self.comm, self.name)
        stepping.Test()
        self._last[arena] = Request([stepping])
        return self._last[arena]

    def _node_steps(
        self, arena: SharedArena, where: Range, op: Op, ticket: int, earlier: Request | None
    ) -> Steps:
        """Steps 2 to 5 of the drawing; the flags count reductions, so an earlier one ends first."""
        if earlier is not None:
            yield earlier
        yield self._reached(arena, 0, ticket)
        if self.rail is not None:
            share = block(where.size, self.num_rails, self.rail_index)
            mine = Range(where.start + share.start, where.start + share.stop)
            yield from self._rail_steps(
                self.rail, arena, mine, self.comm.size if op == "mean" else 1
            )
        self._loops.signal(arena.flags, self.node.size + self.node.rank, ticket)
        yield self._reached(arena, self.node.size, ticket)

    def _rail_steps(
        self, rail: Communicator, arena: SharedArena, mine: Range, divisor: int
    ) -> Steps:
        """Steps 2 to 4: around a ring the memory's work goes on while other segments are on the
        wire.
        """
        array = arena.copies[self.node.rank, mine.slice]

        def prepare(part: Range) -> None:
            own = Range(mine.start + part.start, mine.start + part.stop)
            self._loops.reduce(
                arena.copies,
                arena.rows,
                own.start,
                own.stop,
                arena.copies.dtype.type(1),
                self.node.rank,
            )

        def finish(part: Range) -> None:
            for rank in range(self.node.size):
                if rank != self.node.rank:
                    arena.copies[rank, mine.start + part.start : mine.start + part.stop] = array[
                        part.slice
                    ]

        whole = Range(0, mine.size)
        if rail.size > 1 and self._by_ring(mine.size, array.itemsize):
            segment_words = Ring(rail, self.wire.name).segment_words(array.itemsize)
            local = Local(prepare, finish)
            yield from ring_steps(
                rail, array, divisor, self.next_tag(), self.wire, segment_words, local
            )
            return
        prepare(whole)
        if rail.size > 1 and mine.size:
            yield from rabenseifner_steps(rail, array, "sum", self.next_tag(), self.wire)
        if divisor != 1:
            array /= divisor
        finish(whole)

    def _by_ring(self, share: int, item_bytes: int) -> bool:
        return share * item_bytes >= RING_FROM_BYTES

    def _reached(self, arena: SharedArena, first: int, ticket: int) -> Request:
        return Request([FlagsReached(self._loops, arena, first, ticket, self._spins)])

    def _reduce_copy(self, array: Array, op: Op) -> None:
        arena = self._arenas.staging(array)
        place = arena.own.numpy()[: array.size]
        place[...] = array
        self._begin(arena, 0, array.size, op).wait()
        array[...] = place
