"""Counts the elements and messages that really pass a transport, below the ledger and apart from
it.

The ledger enters a formula for what a library's collective or shared memory moves; so it can't
check that formula. Here every element of every message is counted as it is handed to the transport.
What can't be seen that way marks the count as not whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic, Words
from dist_ml.comm.transport import Transport

_UNSEEN = frozenset(
    {"allreduce", "iallreduce", "reduce_scatter", "ireduce_scatter", "allgather", "iallgather"}
    | {"alltoall", "broadcast", "ibroadcast", "allocate_shared"}
)
_CHILDREN = frozenset({"split", "create_group", "split_by_node", "duplicate"})


@dataclass
class Seen:
    """What one rank sent and received, shared by all groups that were split from one."""

    sent: int = 0
    received: int = 0
    messages: int = 0
    whole: bool = True  # nothing moved unseen

    def words(self) -> Words:
        return Words(self.sent, self.received, self.messages)


class CountingTransport:
    """Any transport, with its messages counted in `seen`."""

    def __init__(self, inner: Transport, seen: Seen) -> None:
        self._inner = inner
        self.seen = seen

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        self._sent(array)
        return self._inner.isend(array, destination, tag)

    def send(self, array: Array, destination: int, tag: int) -> None:
        self._sent(array)
        self._inner.send(array, destination, tag)

    def receive(self, array: Array, source: int, tag: int) -> None:
        self.seen.received += array.size
        self._inner.receive(array, source, tag)

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        self.seen.received += array.size
        return self._inner.ireceive(array, source, tag)

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        array = self._inner.receive_message(dtype, source, tag)
        self.seen.received += array.size
        return array

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner transport's."""
        found = getattr(self._inner, name)
        if name in _UNSEEN and self._inner.size > 1:
            self.seen.whole = False
        return self._wrapped(found) if name in _CHILDREN else found

    def _wrapped(self, make: Callable[..., Transport | None]) -> Callable[..., Any]:
        def child(*arguments: Any) -> Any:
            inner = make(*arguments)
            return None if inner is None else CountingTransport(inner, self.seen)

        return child

    def _sent(self, array: Array) -> None:
        self.seen.sent += array.size
        self.seen.messages += 1


def counted(comm: Communicator) -> tuple[Communicator, Seen]:
    """The same ranks, with a ledger of their own and what passes below it."""
    seen = Seen()
    transport = cast(Transport, CountingTransport(comm.transport, seen))
    return Communicator(transport, comm.axis, Traffic()), seen
