"""The world of one rank: no MPI needed, every collective is a copy or nothing."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.peer_monitor import Peer
from dist_ml.comm.request import Request


class PrivateMemory:
    """Memory shared with nobody."""

    def __init__(self, num_bytes: int) -> None:
        self.array: Array = np.zeros(num_bytes, dtype=np.uint8)

    def free(self) -> None:
        pass


class Loopback:
    """A `Transport` of size 1. A message to oneself waits in a queue by tag until it is
    received.
    """

    rank = 0
    size = 1
    flavour = "loopback"
    members: Sequence[int] = (0,)
    peers: Sequence[Peer] = ()
    thread_level = "MULTIPLE"
    largest_tag = 2**31 - 1

    def __init__(self) -> None:
        self._messages: dict[int, deque[Array]] = {}

    def allreduce(self, array: Array, op: str) -> None:
        pass

    def iallreduce(self, array: Array, op: str) -> Request:
        return Request()

    def reduce_scatter(self, send: Array, receive: Array, counts: Sequence[int], op: str) -> None:
        receive[...] = send

    def ireduce_scatter(
        self, send: Array, receive: Array, counts: Sequence[int], op: str
    ) -> Request:
        receive[...] = send
        return Request()

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> None:
        if send is not None:
            receive[...] = send

    def iallgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> Request:
        self.allgather(send, receive, counts)
        return Request()

    def alltoall(
        self, send: Array, receive: Array, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> None:
        receive[...] = send

    def broadcast(self, array: Array, root: int) -> None:
        pass

    def ibroadcast(self, array: Array, root: int) -> Request:
        return Request()

    def send(self, array: Array, destination: int, tag: int) -> None:
        self._messages.setdefault(tag, deque()).append(array.copy())

    def receive(self, array: Array, source: int, tag: int) -> None:
        waiting = self._messages.get(tag)
        assert waiting, (
            f"a lone rank receives from itself (tag {tag}) what it has not sent: this would wait "
            "for ever"
        )
        array[...] = waiting.popleft()

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        waiting = self._messages.get(tag)
        assert waiting, (
            f"a lone rank receives from itself (tag {tag}) what it has not sent: this would wait "
            "for ever"
        )
        return waiting.popleft()

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        self.send(array, destination, tag)
        return Request()

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        """Received on completion, because the matching send may come after this call."""
        return Request(finish=lambda: self.receive(array, source, tag))

    def ireceive_any(self, array: Array, tag: int) -> tuple[Request, Callable[[], int]]:
        return self.ireceive(array, 0, tag), lambda: 0

    def barrier(self) -> None:
        pass

    def broadcast_object(self, value: Any, root: int) -> Any:
        return value

    def allgather_objects(self, value: Any) -> list[Any]:
        return [value]

    def allocate_shared(self, num_bytes: int) -> "PrivateMemory":
        return PrivateMemory(num_bytes)

    def split(self, color: int | None, key: int) -> "Loopback | None":
        return None if color is None else Loopback()

    def create_group(self, members: Sequence[int], tag: int) -> "Loopback":
        return Loopback()

    def split_by_node(self) -> "Loopback":
        return Loopback()

    def duplicate(self) -> "Loopback":
        return Loopback()

    def free(self) -> None:
        pass

    def end_stuck(self, message: str) -> None:
        raise AssertionError(f"a lone rank waits for nobody: {message}")

    def abort(self, status: int) -> None:
        os._exit(status)
