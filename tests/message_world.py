"""A world of threads whose collectives are made of messages, and every word that goes into one is
counted where it goes: what was seen, to be held against what a plan states and a ledger enters.

The collectives are the direct ones: each rank sends every other rank what that one needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic
from tests.thread_world import REDUCTIONS, ThreadTransport, run_ranks

T = TypeVar("T")
# Tags of the messages inside collectives, beyond those of callers.
_FIRST_TAG = 1 << 20


@dataclass
class Seen:
    """Words and messages over one rank's boundary, all its groups together."""

    sent: int = 0
    received: int = 0
    messages: int = 0

    def clear(self) -> None:
        self.sent = self.received = self.messages = 0

    def as_tuple(self) -> tuple[int, int, int]:
        return self.sent, self.received, self.messages


class AllOf:
    """Several requests as one that a `Request` waits for."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        return all(request.test() for request in self._requests)

    def Wait(self) -> None:  # noqa: N802
        for request in self._requests:
            request.wait()


class MessageTransport(ThreadTransport):
    """See the module's text. `seen` is shared by all groups that are split from one."""

    def __init__(self, rank: int, shared: Any, seen: Seen | None = None) -> None:
        super().__init__(rank, shared)
        self.seen = seen if seen is not None else Seen()
        self._tag = _FIRST_TAG

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        if destination != self.rank:
            self.seen.sent += array.size
            self.seen.messages += 1
        return super().isend(array, destination, tag)

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        message = super().receive_message(dtype, source, tag)
        self._received(source, message)
        return message

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        self._received(source, array)
        return super().ireceive(array, source, tag)

    def iallgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> Request:
        parts = self._parts(receive, counts)
        if send is not None:
            parts[self.rank][...] = send
        return self._exchange([parts[self.rank]] * self.size, parts)

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> None:
        self.iallgather(send, receive, counts).wait()

    def reduce_scatter(self, send: Array, receive: Array, counts: Sequence[int], op: str) -> None:
        found = [np.empty_like(receive) for _ in range(self.size)]
        mine = self._parts(send, counts)
        found[self.rank] = mine[self.rank]
        self._exchange(mine, found).wait()
        receive[...] = REDUCTIONS[op].reduce(found)

    def ibroadcast(self, array: Array, root: int) -> Request:
        tag = self._next_tag()
        if self.rank != root:
            return self.ireceive(array, root, tag)
        others = [rank for rank in range(self.size) if rank != root]
        return Request([AllOf([self.isend(array, rank, tag) for rank in others])])

    def broadcast(self, array: Array, root: int) -> None:
        self.ibroadcast(array, root).wait()

    def alltoall(
        self, send: Array, receive: Array, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> None:
        outgoing, incoming = self._parts(send, send_counts), self._parts(receive, receive_counts)
        incoming[self.rank][...] = outgoing[self.rank]
        self._exchange(outgoing, incoming, empty=False).wait()

    def split(self, color: int | None, key: int) -> "MessageTransport | None":
        group = super().split(color, key)
        return None if group is None else type(self)(group.rank, group.shared, self.seen)

    def _exchange(
        self, outgoing: Sequence[Array], incoming: Sequence[Array], empty: bool = True
    ) -> Request:
        """Send the r-th array to rank r and receive likewise, with empty messages or without."""
        tag = self._next_tag()
        others = [rank for rank in range(self.size) if rank != self.rank]
        receives = [self.ireceive(incoming[r], r, tag) for r in others if empty or incoming[r].size]
        sends = [self.isend(outgoing[r], r, tag) for r in others if empty or outgoing[r].size]
        return Request([AllOf(receives + sends)])

    def _received(self, source: int, array: Array) -> None:
        if source != self.rank:
            self.seen.received += array.size

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag

    @staticmethod
    def _parts(array: Array, counts: Sequence[int]) -> list[Array]:
        ends = np.cumsum(counts)
        return [array[end - count : end] for end, count in zip(ends, counts, strict=True)]


def run_message_ranks(
    size: int,
    body: Callable[[Communicator, Seen], T],
    transport: type[MessageTransport] = MessageTransport,
) -> list[T]:
    """Call `body(comm, seen)` on `size` ranks at once; their results in rank order."""

    def rank_main(comm: Communicator) -> T:
        counted = transport(comm.rank, comm.transport.shared)  # type: ignore[attr-defined]
        return body(Communicator(counted, "data", Traffic()), counted.seen)  # type: ignore[arg-type]

    return run_ranks(size, rank_main)
