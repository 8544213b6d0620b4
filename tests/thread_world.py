"""A world of P threads in one process: any number of ranks in a unit test, without MPI, and no wait
without a limit.
"""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import PrivateMemory
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic

T = TypeVar("T")
LIMIT_SECONDS = 20.0
REDUCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class Mailboxes:
    """What the threads of one group share."""

    def __init__(self, size: int, nodes: Sequence[int] | None = None) -> None:
        self.size = size
        self.nodes = list(nodes) if nodes is not None else [0] * size
        self.boxes: dict[tuple[int, int, int], queue.Queue[Array]] = defaultdict(queue.Queue)
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size

    def box(self, source: int, destination: int, tag: int) -> "queue.Queue[Array]":
        with self.lock:
            return self.boxes[source, destination, tag]


class ThreadTransport:
    """The `Transport` of one thread; collectives are made of one exchange of objects."""

    flavour = "threads"
    peers = ()
    thread_level = "MULTIPLE"
    largest_tag = 2**15 - 1  # what MPI grants at least

    def __init__(self, rank: int, shared: Mailboxes) -> None:
        self.rank, self.size, self.shared = rank, shared.size, shared

    def allgather_objects(self, value: Any) -> list[Any]:
        self.shared.slots[self.rank] = value
        self.shared.barrier.wait(LIMIT_SECONDS)
        everybody = list(self.shared.slots)
        self.shared.barrier.wait(LIMIT_SECONDS)
        return everybody

    def allreduce(self, array: Array, op: str) -> None:
        parts = self.allgather_objects(array.copy())
        array[...] = REDUCTIONS[op].reduce(parts)

    def iallreduce(self, array: Array, op: str) -> Request:
        """Moves when it is looked at; ranks look in the same order."""
        return Request(finish=lambda: self.allreduce(array, op))

    def reduce_scatter(self, send: Array, receive: Array, counts: Sequence[int], op: str) -> None:
        total = REDUCTIONS[op].reduce(self.allgather_objects(send.copy()))
        start = sum(counts[: self.rank])
        receive[...] = total[start : start + counts[self.rank]]

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> None:
        start = sum(counts[: self.rank])
        mine = receive[start : start + counts[self.rank]] if send is None else send
        receive[...] = np.concatenate(self.allgather_objects(mine.copy()))

    def iallgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> Request:
        return Request(finish=lambda: self.allgather(send, receive, counts))

    def broadcast(self, array: Array, root: int) -> None:
        array[...] = self.allgather_objects(array.copy())[root]

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        self.shared.box(self.rank, destination, tag).put(array.copy())
        return Request()

    def send(self, array: Array, destination: int, tag: int) -> None:
        self.isend(array, destination, tag)

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        message = self.shared.box(source, self.rank, tag).get(timeout=LIMIT_SECONDS)
        assert message.dtype == dtype, (message.dtype, dtype)
        return message

    def receive(self, array: Array, source: int, tag: int) -> None:
        message = self.receive_message(array.dtype.name, source, tag)
        assert message.size == array.size, (message.size, array.size)
        array[...] = message

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        return Request(finish=lambda: self.receive(array, source, tag))

    def barrier(self) -> None:
        self.shared.barrier.wait(LIMIT_SECONDS)

    def split(self, color: int | None, key: int) -> "ThreadTransport | None":
        """The ranks of one colour by key, meeting in mailboxes that the first of them makes."""
        everybody = self.allgather_objects((color, key, self.rank))
        mine = sorted((k, rank) for c, k, rank in everybody if c == color)
        made: dict[int, Mailboxes] = {}
        if color is not None and mine[0][1] == self.rank:
            made = {color: Mailboxes(len(mine), [self.shared.nodes[rank] for _, rank in mine])}
        groups: dict[int, Mailboxes] = {}
        for group in self.allgather_objects(made):
            groups.update(group)
        if color is None:
            return None
        return ThreadTransport([rank for _, rank in mine].index(self.rank), groups[color])

    def split_by_node(self) -> "ThreadTransport":
        node = self.split(self.shared.nodes[self.rank], self.rank)
        assert node is not None
        return node

    def broadcast_object(self, value: Any, root: int) -> Any:
        return self.allgather_objects(value)[root]

    def allocate_shared(self, num_bytes: int) -> PrivateMemory:
        """The first rank's memory, which the threads of all ranks see."""
        memory: PrivateMemory = self.broadcast_object(PrivateMemory(num_bytes), 0)
        return memory

    def duplicate(self) -> "ThreadTransport":
        return self

    def free(self) -> None:
        pass


def run_ranks(
    size: int, body: Callable[[Communicator], T], nodes: Sequence[int] | None = None
) -> list[T]:
    """Call `body` on `size` ranks at once; their results in rank order. The first rank's exception
    is raised here. `nodes[r]` is the node that rank r says it is on (default: one for all).
    """
    shared = Mailboxes(size, nodes)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def rank_main(rank: int) -> None:
        try:
            results[rank] = body(Communicator(ThreadTransport(rank, shared), "data", Traffic()))  # type: ignore[arg-type]
        except BaseException as error:
            errors[rank] = error
            shared.barrier.abort()

    threads = [
        threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_SECONDS)
        assert not thread.is_alive(), "a rank still waits"
    real = [
        error
        for error in errors
        if error is not None and not isinstance(error, threading.BrokenBarrierError)
    ]
    for error in real or [error for error in errors if error is not None]:
        raise error
    return results
