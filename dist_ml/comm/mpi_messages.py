"""Messages between two ranks over one MPI communicator, and the exchange that is made of them."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from time import monotonic
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.peer_monitor import Peer, PeerMonitor
from dist_ml.comm.polled_request import PolledRequest
from dist_ml.comm.request import Request
from dist_ml.errors import CommunicationError
from dist_ml.partition import pieces

PIECE = 2**30
ALLTOALL_TAG = 32_000


class MpiMessages:
    """The part of an `MpiTransport` that sends and receives."""

    _mpi: Any
    comm: Any
    rank: int
    size: int
    peers: Sequence[Peer]
    blocked_since: float

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

    def alltoall(
        self, send: Array, receive: Array, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> None:
        """Pairwise messages, each rank beginning with its right-hand neighbour so that no rank is
        everybody's target at once.

        Not MPI's own Alltoallv, because ranks would have to agree first whether any of them exceeds
        its counts.
        """
        send_starts, receive_starts = starts_of(send_counts), starts_of(receive_counts)
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


def _parts(array: Array) -> list[Array]:
    """Pieces of at most `PIECE` elements. The last is shorter: who doesn't know the size sees by it
    that no more follow.
    """
    if array.size < PIECE:
        return [array]
    parts = [array[piece.slice] for piece in pieces(array.size, PIECE)]
    return parts if parts[-1].size < PIECE else [*parts, array[:0]]


def starts_of(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]
