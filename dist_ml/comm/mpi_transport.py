"""A `Transport` over one MPI communicator. `mpi.py` imports mpi4py and hands the module in.

Counts above 2^31 - 1 elements fail in some MPI libraries (MPI_ERR_ARG on Open MPI 5), so large
buffers go in pieces on all of them.
"""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from time import monotonic
from typing import Any

import numpy as np

from dist_ml.comm.blocked_calls import BlockedCalls
from dist_ml.comm.buffer import Array
from dist_ml.comm.peer_monitor import Peer, PeerMonitor
from dist_ml.comm.polled_request import PolledRequest
from dist_ml.comm.request import Request
from dist_ml.comm.shared_window import SharedWindow
from dist_ml.comm.thread_level import LEVELS
from dist_ml.errors import CommunicationError
from dist_ml.partition import pieces

MAX_COUNT = 2**31 - 1
PIECE = 2**30
ALLTOALL_TAG = 32_000


class MpiTransport:
    """A `Transport` over one MPI communicator."""

    def __init__(
        self, mpi: Any, comm: Any, peers: Sequence[Peer] = (), watch: BlockedCalls | None = None
    ) -> None:
        self._mpi = mpi
        self.peers = peers  # the world's ranks that this process can see
        self.blocked_since = 0.0
        self._watch = watch
        if watch is not None:
            watch.register(self)
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.flavour: str = mpi.get_vendor()[0]
        self._ops = {"sum": mpi.SUM, "max": mpi.MAX, "min": mpi.MIN}

    def end_when_stuck(self, end: Callable[[str], None]) -> None:
        """Call `end(message)`, which must not return, on a thread of its own, when a blocking call
        of this transport, or of those split from it afterwards, can't end because a rank has died.
        """
        self._watch = BlockedCalls(self.peers, end)
        self._watch.register(self)

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
        for owner, start in enumerate(_starts(counts)):
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
        starts = _starts(counts)
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

    def alltoall(
        self, send: Array, receive: Array, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> None:
        """Pairwise messages, each rank beginning with its right-hand neighbour so that no rank is
        everybody's target at once.

        Not MPI's own Alltoallv, because ranks would have to agree first whether any of them exceeds
        its counts.
        """
        send_starts, receive_starts = _starts(send_counts), _starts(receive_counts)
        pending = []
        for step in range(1, self.size):
            source = (self.rank - step) % self.size
            if receive_counts[source]:
                start = receive_starts[source]
                pending.append(
                    self.ireceive(
                        receive[start : start + receive_counts[source]], source, ALLTOALL_TAG
                    )
                )
        for step in range(1, self.size):
            destination = (self.rank + step) % self.size
            if send_counts[destination]:
                start = send_starts[destination]
                pending.append(
                    self.isend(
                        send[start : start + send_counts[destination]], destination, ALLTOALL_TAG
                    )
                )
        own_send, own_receive = send_starts[self.rank], receive_starts[self.rank]
        own = send_counts[self.rank]
        receive[own_receive : own_receive + own] = send[own_send : own_send + own]
        for request in pending:
            request.wait()

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

    def send(self, array: Array, destination: int, tag: int) -> None:
        self.blocked_since = monotonic()
        for part in _parts(array):
            self.comm.Send(part, destination, tag)
        self.blocked_since = 0.0

    def receive(self, array: Array, source: int, tag: int) -> None:
        self.blocked_since = monotonic()
        for part in _parts(array):
            self.comm.Recv(part, source, tag)
        self.blocked_since = 0.0

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        """A matched probe tells the size of each part; a part shorter than `PIECE` is the last.

        Asked again and again: MPICH's blocking probe spins without giving its core up, which ranks
        that share cores then wait for. 7 short messages among 8 ranks on 2 cores took 71 ms with
        it, 3 ms this way.
        """
        parts = [self._receive_part(dtype, source, tag)]
        while parts[-1].size == PIECE:
            parts.append(self._receive_part(dtype, source, tag))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _receive_part(self, dtype: str, source: int, tag: int) -> Array:
        status, monitor = self._mpi.Status(), PeerMonitor(self.peers)
        while (message := self.comm.Improbe(source, tag, status)) is None:
            monitor.between_looks()
        array = np.empty(status.Get_count(self._mpi.BYTE) // np.dtype(dtype).itemsize, dtype=dtype)
        self._polled(message.Irecv(array)).Wait()
        return array

    def _polled(self, request: Any) -> "PolledRequest":
        return PolledRequest(request, self.peers)

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        return Request(
            [self._polled(self.comm.Isend(part, destination, tag)) for part in _parts(array)],
            keep=array,
        )

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        return Request(
            [self._polled(self.comm.Irecv(part, source, tag)) for part in _parts(array)], keep=array
        )

    def ireceive_any(self, array: Array, tag: int) -> tuple[Request, Callable[[], int]]:
        """A message of one part: those of several parts from two ranks could mix."""
        if array.size >= PIECE:
            raise CommunicationError(
                f"{array.size:,} elements are too many to receive from any rank; name the source, "
                f"or send fewer than {PIECE:,} at once"
            )
        status = self._mpi.Status()
        request = self.comm.Irecv(array, self._mpi.ANY_SOURCE, tag)
        polled = PolledRequest(request, self.peers, status)
        return Request([polled], keep=array), status.Get_source

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
        return SharedWindow(self._mpi, self.comm, num_bytes)

    def split(self, color: int | None, key: int) -> "MpiTransport | None":
        comm = self.comm.Split(self._mpi.UNDEFINED if color is None else color, key)
        return (
            None
            if comm == self._mpi.COMM_NULL
            else MpiTransport(self._mpi, comm, self.peers, self._watch)
        )

    def create_group(self, members: Sequence[int], tag: int) -> "MpiTransport":
        group = self.comm.Get_group().Incl(list(members))
        comm = self.comm.Create_group(group, tag)
        group.Free()
        return MpiTransport(self._mpi, comm, self.peers, self._watch)

    def split_by_node(self) -> "MpiTransport":
        comm = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
        return MpiTransport(self._mpi, comm, self.peers, self._watch)

    def duplicate(self) -> "MpiTransport":
        return MpiTransport(self._mpi, self.comm.Dup(), self.peers, self._watch)

    def free(self) -> None:
        if self.comm != self._mpi.COMM_NULL and self.comm != self._mpi.COMM_WORLD:
            self.comm.Free()

    def abort(self, status: int) -> None:
        """End all ranks. MPICH may run on for some milliseconds after Abort, so leave at once."""
        self.comm.Abort(status)
        os._exit(status)


def _parts(array: Array) -> list[Array]:
    """Pieces of at most `PIECE` elements. The last is shorter: who doesn't know the size sees by it
    that no more follow.
    """
    if array.size < PIECE:
        return [array]
    parts = [array[piece.slice] for piece in pieces(array.size, PIECE)]
    return parts if parts[-1].size < PIECE else [*parts, array[:0]]


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]


def granted(mpi: Any) -> str:
    """The thread level that the library grants: one of `thread_level.LEVELS`."""
    return {getattr(mpi, f"THREAD_{level}"): level for level in LEVELS}[mpi.Query_thread()]
