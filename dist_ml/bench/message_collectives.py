"""Collectives made of messages, so that what passes between ranks can be counted below them.

What an MPI library moves inside its own collectives can't be seen. Here each rank sends every other
one exactly what that one needs: an allgather's own share to all, a reduce-scatter's shares to their
owners, and an allreduce as one after the other. Nothing here counts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np

from dist_ml import partition
from dist_ml.bench.counting_transport import CountingTransport, Seen
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic
from dist_ml.comm.transport import Transport

_TAG = 1
_OPS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class MessageCollectives:
    """The ranks of `inner`, whose blocking allreduce, reduce-scatter and allgather are messages."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.rank, self.size = inner.rank, inner.size

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> None:
        parts = _cut(receive, counts)
        if send is not None:
            parts[self.rank][...] = send
        self._exchange(dict.fromkeys(self._others, parts[self.rank]), parts)

    def reduce_scatter(self, send: Array, receive: Array, counts: Sequence[int], op: str) -> None:
        parts = _cut(send, counts)
        given = [np.empty_like(receive) for _ in counts]
        given[self.rank][...] = parts[self.rank]
        self._exchange({r: parts[r] for r in self._others}, given)
        receive[...] = _OPS[op].reduce(given)

    def allreduce(self, array: Array, op: str) -> None:
        counts = partition.counts(array.size, self.size)
        own = np.empty(counts[self.rank], array.dtype)
        self.reduce_scatter(array, own, counts, op)
        self.allgather(own, array, counts)

    def split(self, color: int | None, key: int) -> "MessageCollectives | None":
        made = self._inner.split(color, key)
        return None if made is None else MessageCollectives(made)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner transport's."""
        return getattr(self._inner, name)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _exchange(self, outgoing: dict[int, Array], incoming: Sequence[Array]) -> None:
        """Nothing goes where a part is empty."""
        pending: list[Request] = []
        for rank in self._others:
            if incoming[rank].size:
                pending.append(self._inner.ireceive(incoming[rank], rank, _TAG))
            if outgoing[rank].size:
                pending.append(self._inner.isend(outgoing[rank], rank, _TAG))
        for request in pending:
            request.wait()


def in_messages(comm: Communicator) -> tuple[Communicator, Seen]:
    """The same ranks, whose collectives are messages, and the count of what passes."""
    seen = Seen()
    counting = cast(Transport, CountingTransport(comm.transport, seen))
    transport = cast(Transport, MessageCollectives(counting))
    return Communicator(transport, comm.axis, Traffic()), seen


def _cut(array: Array, counts: Sequence[int]) -> list[Array]:
    ends = np.cumsum([0, *counts])
    return [array[start:stop] for start, stop in pairwise(ends)]
