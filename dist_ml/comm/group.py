"""The group of ranks behind a Communicator: who is in it, how it splits, what is checked and
counted before each call.
"""

from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Self

from dist_ml import partition
from dist_ml.comm.buffer import Buffer
from dist_ml.comm.buffer_cache import BufferCache
from dist_ml.comm.checked import Checker
from dist_ml.comm.traffic import Traffic, Words
from dist_ml.comm.transport import Transport
from dist_ml.errors import CommunicationError
from dist_ml.flight.recorder import ENDED, Recorder


class Group:
    """Ranks along one mesh axis, without the collectives that move tensors (those are
    `Communicator`'s).

    `traffic` and `recorder` are shared with every group split from this one. `checked` makes ranks
    compare calls before each collective. `calls` records them (`flight/recorder.py`).
    """

    def __init__(
        self,
        transport: Transport,
        axis: str = "world",
        traffic: Traffic | None = None,
        checked: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.transport = transport
        self.axis = axis
        self.rank = transport.rank
        self.size = transport.size
        self.traffic = traffic if traffic is not None else Traffic()
        members = transport.members
        if recorder is None:
            recorder = Recorder(members[transport.rank], len(members))
        self.recorder = recorder
        self.calls = recorder.group(axis, members, transport.rank)
        self._views = BufferCache()
        self._parent: Group | None = None
        self._children: list[Group] = []  # split from this one and not freed, in order
        self._freed = False
        self._checker = Checker(transport.duplicate()) if checked and transport.size > 1 else None

    def __repr__(self) -> str:
        place = f"axis={self.axis}, rank={self.rank}, size={self.size}"
        return f"{type(self).__name__}({place}, {self.transport.flavour})"

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._check("barrier")
        record = self.calls.collective("barrier", depth=2)
        self.transport.barrier()
        record[ENDED] = monotonic_ns()

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """The root's small Python object, on all ranks: for set-up and errors, not for data. Not
        counted.
        """
        self._check("broadcast_object", root=root)
        record = self.calls.collective("broadcast_object", detail=root, depth=2)
        value = self.transport.broadcast_object(value, root)
        record[ENDED] = monotonic_ns()
        return value

    def allgather_objects(self, value: Any) -> list[Any]:
        """Every rank's small Python object, in rank order, on all ranks. Not counted."""
        self._check("allgather_objects")
        record = self.calls.collective("allgather_objects", depth=2)
        values = self.transport.allgather_objects(value)
        record[ENDED] = monotonic_ns()
        return values

    def split(
        self, color: int | None, key: int | None = None, axis: str | None = None
    ) -> Self | None:
        """The group of the ranks with the same `color`, ordered by `key` (default: this rank); none
        where color is None.
        """
        self._check("split")
        record = self.calls.collective("split", depth=2)
        transport = self.transport.split(color, self.rank if key is None else key)
        record[ENDED] = monotonic_ns()
        return None if transport is None else self._child(transport, axis)

    def create_group(self, members: Sequence[int], tag: int, axis: str | None = None) -> Self:
        """The group of these ranks, in this order: a call that only they make, `split` being one of
        all ranks. `tag` tells apart what threads of the members make at once.
        """
        return self._child(self.transport.create_group(members, tag), axis)

    def split_by_node(self, axis: str | None = None) -> Self:
        """The group of the ranks that share this node's memory."""
        self._check("split_by_node")
        record = self.calls.collective("split_by_node", depth=2)
        transport = self.transport.split_by_node()
        record[ENDED] = monotonic_ns()
        return self._child(transport, axis)

    def with_checks(self) -> Self:
        """The same ranks, comparing their calls before each collective (`comm.checked`).
        Collective.
        """
        return type(self)(self.transport, self.axis, self.traffic, True, self.recorder)

    def renew(self, transport: Transport) -> None:
        """Be the group behind another transport. Those split from the former one stay as they are,
        and are this group's no more.
        """
        for child in self._children:
            child._parent = None
        self._children = []
        self.transport, self.rank, self.size = transport, transport.rank, transport.size
        self.calls = self.recorder.group(self.axis, transport.members, transport.rank)
        self.recorder.size = self.size

    def free(self) -> None:
        """Give back the group's resources, and first those of all groups split from it. Collective.

        MPI libraries have few of them: MPICH 2,048 for all that a process makes.
        """
        if self._freed:
            return
        self._freed = True
        for child in reversed(self._children):
            child._parent = None
            child.free()
        if self._checker:
            self._checker.free()
        self.transport.free()
        if self._parent is not None:
            self._parent._children.remove(self)

    @property
    def compares_calls(self) -> bool:
        """Is this group in checked mode?"""
        return self._checker is not None

    def compare_calls(self, call: str, dtype: str, count: int) -> None:
        """In checked mode, raise unless all ranks are about to make the same `call`: for
        collectives built on messages.
        """
        self._check(call, dtype, count)

    def abort(self, status: int) -> None:
        """End all ranks of the world at once; does not return."""
        self.transport.abort(status)

    def _child(self, transport: Transport, axis: str | None) -> Self:
        checked = self._checker is not None
        child = type(self)(transport, axis or self.axis, self.traffic, checked, self.recorder)
        child._parent = self
        self._children.append(child)
        return child

    def _check(
        self, collective: str, dtype: str = "-", count: int | None = None, root: int | None = None
    ) -> None:
        if root is not None:
            self._check_rank("root", root)
        if self._checker:
            self._checker.check(collective, dtype, count, root)

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise CommunicationError(
                f"{name}={rank} is not a rank of axis {self.axis}: they go from 0 to "
                f"{self.size - 1}"
            )

    def _count(self, collective: str, moved: Words, word_bytes: int) -> None:
        if self.size > 1:
            self.traffic.count(self.axis, collective, moved, word_bytes)

    def _shares(self, counts: Sequence[int] | None, n: int) -> Sequence[int]:
        """One count a rank: those given, or the balanced block partition of n."""
        if counts is None:
            return partition.counts(n, self.size)
        if len(counts) != self.size:
            raise CommunicationError(
                f"counts must name one size a rank: {self.size} on axis {self.axis}, not "
                f"{len(counts)}"
            )
        return counts


def expect(collective: str, name: str, buffer: Buffer, count: int, dtype: str) -> None:
    """`CommunicationError` unless the buffer has `count` elements of `dtype`."""
    if buffer.array.size != count:
        raise CommunicationError(
            f"{collective}: {name} has {buffer.array.size} elements, but the counts ask for {count}"
        )
    if buffer.dtype != dtype:
        raise CommunicationError(
            f"{collective}: {name} is {buffer.dtype} and the other buffer {dtype}; use one dtype "
            "for both"
        )
