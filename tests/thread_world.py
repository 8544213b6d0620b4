"""A world of P threads in one process: any number of ranks in a unit test, without MPI, and no wait
without a limit.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import PrivateMemory
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic
from tests import thread_messages
from tests.thread_messages import LIMIT_SECONDS, Mailboxes, Sends, World
from tests.thread_reductions import REDUCTIONS, Reductions

T = TypeVar("T")


class Group:
    """What the threads of one group share. `nodes[r]` is the node that rank r says it is on.

    Objects are exchanged in two sets of slots in turn: whoever writes into one again has passed a
    barrier of the other, which all reach after they have read the first.
    """

    def __init__(self, world: World, nodes: Sequence[int]) -> None:
        self.world, self.nodes, self.size = world, list(nodes), len(nodes)
        self.mailboxes = Mailboxes(world)
        self.reductions = Reductions(world, self.size)
        self.barrier = world.barrier(self.size)
        self.slots: tuple[list[Any], list[Any]] = [None] * self.size, [None] * self.size
        self.turns = [0] * self.size


class ThreadTransport:
    """The `Transport` of one thread; collectives are made of one exchange of objects."""

    flavour = "threads"
    peers = ()
    thread_level = "MULTIPLE"
    largest_tag = 2**15 - 1  # what MPI grants at least

    def __init__(self, rank: int, shared: Group, members: Sequence[int] | None = None) -> None:
        self.rank, self.size, self.shared = rank, shared.size, shared
        self.members = range(self.size) if members is None else members  # the world's ranks

    def allgather_objects(self, value: Any) -> list[Any]:
        slots = self.shared.slots[self.shared.turns[self.rank]]
        self.shared.turns[self.rank] ^= 1
        slots[self.rank] = value
        self.shared.barrier.wait(LIMIT_SECONDS)
        return list(slots)

    def allreduce(self, array: Array, op: str) -> None:
        parts = self.allgather_objects(array.copy())
        array[...] = REDUCTIONS[op].reduce(parts)

    def iallreduce(self, array: Array, op: str) -> Request:
        return Request([self.shared.reductions.begin(self.rank, array, op)], keep=array)

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

    def alltoall(
        self, send: Array, receive: Array, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> None:
        own = np.split(send.copy(), np.cumsum(send_counts)[:-1])
        pieces = [rank[self.rank] for rank in self.allgather_objects(own)]
        assert [len(piece) for piece in pieces] == list(receive_counts)
        receive[...] = np.concatenate(pieces)

    def broadcast(self, array: Array, root: int) -> None:
        array[...] = self.allgather_objects(array.copy())[root]

    def isend(self, array: Array, destination: int, tag: int) -> Request:
        message = self.shared.mailboxes.send(array, self.rank, destination, tag)
        buffered = self.shared.world.sends == "buffered"
        return Request() if buffered else Request([message], keep=array)

    def send(self, array: Array, destination: int, tag: int) -> None:
        self.isend(array, destination, tag).wait()

    def receive_message(self, dtype: str, source: int, tag: int) -> Array:
        posted = self.shared.mailboxes.receive(None, source, self.rank, tag)
        posted.Wait()
        assert posted.message.dtype == dtype, (posted.message.dtype, dtype)
        return posted.message

    def receive(self, array: Array, source: int, tag: int) -> None:
        self.ireceive(array, source, tag).wait()

    def ireceive(self, array: Array, source: int, tag: int) -> Request:
        posted = self.shared.mailboxes.receive(array, source, self.rank, tag)
        return Request([posted], keep=array)

    def barrier(self) -> None:
        self.shared.barrier.wait(LIMIT_SECONDS)

    def split(self, color: int | None, key: int) -> "ThreadTransport | None":
        """The ranks of one colour by key, in a group that the first of them makes."""
        everybody = self.allgather_objects((color, key, self.rank))
        mine = sorted((k, rank) for c, k, rank in everybody if c == color)
        made: dict[int, Group] = {}
        if color is not None and mine[0][1] == self.rank:
            nodes = [self.shared.nodes[rank] for _, rank in mine]
            made = {color: Group(self.shared.world, nodes)}
        groups: dict[int, Group] = {}
        for group in self.allgather_objects(made):
            groups.update(group)
        if color is None:
            return None
        ranks = [rank for _, rank in mine]
        members = [self.members[rank] for rank in ranks]
        return ThreadTransport(ranks.index(self.rank), groups[color], members)

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
    size: int,
    body: Callable[[Communicator], T],
    nodes: Sequence[int] | None = None,
    sends: Sends | None = None,
) -> list[T]:
    """Call `body` on `size` ranks at once; their results in rank order. The first rank's exception
    is raised here. `nodes[r]` is the node that rank r says it is on (default: one for all);
    `sends` says when they complete (default: as late as MPI may).
    """
    world = World(sends or thread_messages.DEFAULT_SENDS)
    shared = Group(world, [0] * size if nodes is None else nodes)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def rank_main(rank: int) -> None:
        try:
            results[rank] = body(Communicator(ThreadTransport(rank, shared), "data", Traffic()))  # type: ignore[arg-type]
        except BaseException as error:
            errors[rank] = error
            world.fail()

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
    world.check_end()
    return results
