"""A `Transport` over one MPI communicator. `mpi.py` imports mpi4py and hands the module in.

Counts above 2^31 - 1 elements fail in some MPI libraries (MPI_ERR_ARG on Open MPI 5), so large
buffers go in pieces on all of them.
"""

import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from dist_ml.comm.blocked_calls import BlockedCalls
from dist_ml.comm.buffer import Array
from dist_ml.comm.mpi_family import MpiFamily
from dist_ml.comm.mpi_messages import PIECE, MpiMessages, starts_of
from dist_ml.comm.request import Request
from dist_ml.comm.shared_window import SharedWindow
from dist_ml.comm.thread_level import LEVELS
from dist_ml.partition import pieces

MAX_COUNT = 2**31 - 1


class MpiTransport(MpiMessages):
    """A `Transport` over one MPI communicator."""

    def __init__(self, mpi: Any, comm: Any, family: MpiFamily | None = None) -> None:
        self._mpi = mpi
        self.family = family or MpiFamily()
        self.peers = self.family.peers  # the world's ranks that this process can see
        self.blocked_since = 0.0
        self.comm = comm
        self.family.add(self)
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.flavour: str = mpi.get_vendor()[0]
        self._ops = {"sum": mpi.SUM, "max": mpi.MAX, "min": mpi.MIN}

    def end_when_stuck(self, end: Callable[[str], None]) -> None:
        """Call `end(message)`, which must not return, on a thread of its own, when a blocking call
        of this transport, or of those split from it afterwards, can't end because a rank has died.
        """
        self.family.watch = BlockedCalls(self.peers, end)
        self.family.watch.register(self)

    @property
    def members(self) -> Sequence[int]:
        """The world's ranks in the group, in its order; each process can tell by itself."""
        group, world = self.comm.Get_group(), self._mpi.COMM_WORLD.Get_group()
        members: Sequence[int] = group.Translate_ranks(range(self.size), world)
        group.Free()
        world.Free()
        return members

    @property
    def thread_level(self) -> str:
        """What MPI grants: one of `thread_level.LEVELS`."""
        return granted(self._mpi)

    @property
    def largest_tag(self) -> int:
        """Of a message; MPI grants at least 32,767. The attribute is the world's."""
        return int(self._mpi.COMM_WORLD.Get_attr(self._mpi.TAG_UB))

    def allreduce(self, array: Array, op: str) -> None:
        if array.size <= MAX_COUNT:
            self.blocked_since = monotonic()
            self.comm.Allreduce(self._mpi.IN_PLACE, array, self._ops[op])
            self.blocked_since = 0.0
            return
        for piece in pieces(array.size, PIECE):
            self.comm.Allreduce(self._mpi.IN_PLACE, array[piece.slice], self._ops[op])

    def iallreduce(self, array: Array, op: str) -> Request:
        parts = [array[piece.slice] for piece in pieces(array.size, PIECE)] or [array]
        return Request(
            [
                self._polled(self.comm.Iallreduce(self._mpi.IN_PLACE, part, self._ops[op]))
                for part in parts
            ],
            keep=array,
        )

    def reduce_scatter(self, send: Array, receive: Array, counts: Sequence[int], op: str) -> None:
        if send.size <= MAX_COUNT:
            self.blocked_since = monotonic()
            self.comm.Reduce_scatter(send, receive, list(counts), self._ops[op])
            self.blocked_since = 0.0
            return
        for owner, start in enumerate(starts_of(counts)):
            for piece in pieces(counts[owner], PIECE):
                part = receive[piece.slice] if owner == self.rank else None
                self.comm.Reduce(
                    send[start + piece.start : start + piece.stop], part, self._ops[op], root=owner
                )

    def ireduce_scatter(
        self, send: Array, receive: Array, counts: Sequence[int], op: str
    ) -> Request:
        if send.size > MAX_COUNT:
            self.reduce_scatter(send, receive, counts, op)
            return Request()
        return Request(
            [self._polled(self.comm.Ireduce_scatter(send, receive, list(counts), self._ops[op]))],
            keep=(send, receive),
        )

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> None:
        if receive.size <= MAX_COUNT:
            self.blocked_since = monotonic()
            self.comm.Allgatherv(
                self._mpi.IN_PLACE if send is None else send, [receive, list(counts)]
            )
            self.blocked_since = 0.0
            return
        starts = starts_of(counts)
        if send is not None:
            receive[starts[self.rank] : starts[self.rank] + counts[self.rank]] = send
        for owner, start in enumerate(starts):
            self.broadcast(receive[start : start + counts[owner]], owner)

    def iallgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> Request:
        if receive.size > MAX_COUNT:
            self.allgather(send, receive, counts)
            return Request()
        source = self._mpi.IN_PLACE if send is None else send
        return Request(
            [self._polled(self.comm.Iallgatherv(source, [receive, list(counts)]))],
            keep=(send, receive),
        )

    def broadcast(self, array: Array, root: int) -> None:
        if array.size <= MAX_COUNT:
            self.blocked_since = monotonic()
            self.comm.Bcast(array, root)
            self.blocked_since = 0.0
            return
        for piece in pieces(array.size, PIECE):
            self.comm.Bcast(array[piece.slice], root)

    def ibroadcast(self, array: Array, root: int) -> Request:
        parts = [array[piece.slice] for piece in pieces(array.size, PIECE)] or [array]
        return Request([self._polled(self.comm.Ibcast(part, root)) for part in parts], keep=array)

    def barrier(self) -> None:
        self.blocked_since = monotonic()
        self.comm.Barrier()
        self.blocked_since = 0.0

    def broadcast_object(self, value: Any, root: int) -> Any:
        self.blocked_since = monotonic()
        value = self.comm.bcast(value, root)
        self.blocked_since = 0.0
        return value

    def allgather_objects(self, value: Any) -> list[Any]:
        self.blocked_since = monotonic()
        gathered: list[Any] = self.comm.allgather(value)
        self.blocked_since = 0.0
        return gathered

    def allocate_shared(self, num_bytes: int) -> "SharedWindow":
        return self.family.add_window(SharedWindow(self._mpi, self.comm, num_bytes))

    def split(self, color: int | None, key: int) -> "MpiTransport | None":
        comm = self.comm.Split(self._mpi.UNDEFINED if color is None else color, key)
        return None if comm == self._mpi.COMM_NULL else MpiTransport(self._mpi, comm, self.family)

    def create_group(self, members: Sequence[int], tag: int) -> "MpiTransport":
        group = self.comm.Get_group().Incl(list(members))
        comm = self.comm.Create_group(group, tag)
        group.Free()
        return MpiTransport(self._mpi, comm, self.family)

    def split_by_node(self) -> "MpiTransport":
        comm = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
        return MpiTransport(self._mpi, comm, self.family)

    def duplicate(self) -> "MpiTransport":
        return MpiTransport(self._mpi, self.comm.Dup(), self.family)

    def free(self) -> None:
        if self.comm != self._mpi.COMM_NULL and self.comm != self._mpi.COMM_WORLD:
            self.comm.Free()

    def end_stuck(self, message: str) -> None:
        """End all ranks as `end_when_stuck` says; without it, at once. Does not return."""
        if self.family.watch is not None:
            self.family.watch.end(message)
        self.abort(1)

    def abort(self, status: int) -> None:
        """End all ranks. MPICH may run on for some milliseconds after Abort, so leave at once."""
        self._mpi.COMM_WORLD.Abort(status)
        os._exit(status)


def granted(mpi: Any) -> str:
    """The thread level that the library grants: one of `thread_level.LEVELS`."""
    return {getattr(mpi, f"THREAD_{level}"): level for level in LEVELS}[mpi.Query_thread()]
