"""The last calls of this rank, recorded always: what is looked at when ranks wait for each other.

    ring    [ record | record | ... ]     one record a call, the oldest is overwritten

A record is a list, made once and changed in place, since a call may cost a microsecond at most:
`ENTERED` is taken when the call is made, `WAITED` when the rank begins to wait for it (at once, in
a blocking call), `ENDED` when it is over. Of the caller its code and the instruction in it are
kept; which line that is, is looked up when the ring is written (`record_file.py`).
"""

import itertools
import weakref
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from sys import _getframe
from time import monotonic_ns
from typing import Any, TypeAlias

CAPACITY = 4096
_LISTED = 4  # members that a group's name tells in full
ANY_PEER = -1  # whoever sends first

Record: TypeAlias = list[Any]
# The places in a record. DETAIL: a collective's operator or root, a message's tag. PEER: a
# message's other rank, in its group; None of a collective. Times are `time.monotonic_ns`, 0 if not
# yet.
(
    NUMBER,
    GROUP,
    SEQUENCE,
    CALL,
    DETAIL,
    DTYPE,
    COUNT,
    PEER,
    CODE,
    INSTRUCTION,
    ENTERED,
    WAITED,
    ENDED,
) = range(13)


class Recorder:
    """The ring of one rank of the world; one object is shared by all groups split from one world.

    `folder` is where it is written when the job fails; None: nowhere. `step` is the one that runs.
    """

    def __init__(self, rank: int = 0, size: int = 1, capacity: int = CAPACITY) -> None:
        self.rank, self.size = rank, size
        self.folder: Path | None = None
        self.step: int | None = None
        self.is_final = False  # has written what it had to say about the job's end
        self.ring: list[Record | None] = [None] * capacity
        self.numbers = itertools.count()  # `next` of it is one step for all threads
        self._made: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._groups: weakref.WeakSet[GroupCalls] = weakref.WeakSet()

    def group(self, axis: str, members: Sequence[int], rank: int) -> "GroupCalls":
        """The calls of one communicator, of which this is rank `rank`; `members` are the world's
        ranks in it.

        Its name is the same on all members: they make groups of the same members in the same order.
        """
        key = axis, tuple(members)
        self._made[key] += 1
        name = f"{axis} {_listed(members)} #{self._made[key]}"
        if len(members) == 1:  # it waits for nobody
            return GroupCalls(name, tuple(members), rank, [None], itertools.repeat(0))
        calls = GroupCalls(name, tuple(members), rank, self.ring, self.numbers)
        self._groups.add(calls)
        return calls

    def groups(self) -> list["GroupCalls"]:
        """Those that live, and those that a record in the ring is of."""
        return sorted(self._groups, key=lambda group: group.name)

    def records(self) -> list[Record]:
        """What the ring holds, the oldest first; other threads may go on recording."""
        return sorted((record for record in list(self.ring) if record), key=lambda r: r[NUMBER])

    def mark(self) -> int:
        """A number between those of the calls so far and those of the calls to come."""
        return next(self.numbers)

    def between(self, first: int, last: int) -> list[Record]:
        """The calls between two marks, as far as the ring still holds them, the oldest first."""
        capacity = len(self.ring)
        if last - first >= capacity:
            return [r for r in self.records() if first < r[NUMBER] < last]
        start, stop = first % capacity, last % capacity
        part = self.ring[start:stop] if start <= stop else self.ring[start:] + self.ring[:stop]
        return [r for r in part if r is not None and first < r[NUMBER] < last]


def _listed(members: Sequence[int]) -> str:
    """Few ranks in full; of many the ends, and a checksum that tells them from others."""
    if len(members) <= _LISTED:
        return "-".join(map(str, members))
    checksum = zlib.crc32(repr(tuple(members)).encode())
    return f"{members[0]}-…-{members[-1]} ({len(members)} ranks, {checksum:08x})"


class GroupCalls:
    """Records the calls of one communicator: `collective` and `message` give the record, whose end
    the caller notes.
    """

    __slots__ = (
        "__weakref__",
        "_capacity",
        "_counts",
        "_numbers",
        "_ring",
        "collectives",
        "members",
        "name",
        "rank",
    )

    def __init__(
        self,
        name: str,
        members: tuple[int, ...],
        rank: int,
        ring: list[Record | None],
        numbers: "itertools.count[int] | itertools.repeat[int]",
    ) -> None:
        self.name, self.members, self.rank = name, members, rank
        self.collectives = 0  # so far
        self._counts: dict[tuple[str, int, int], int] = {}  # of messages, by call, peer and tag
        self._ring, self._capacity, self._numbers = ring, len(ring), numbers

    def collective(
        self,
        call: str,
        dtype: str = "-",
        count: int | None = None,
        detail: str | int | None = None,
        depth: int = 3,
    ) -> Record:
        """The call begins. `depth`: of the frame that is recorded as its caller, above this one."""
        self.collectives = sequence = self.collectives + 1
        frame, number, now = _getframe(depth), next(self._numbers), monotonic_ns()
        record = [number, self, sequence, call, detail, dtype, count, None]
        record += (frame.f_code, frame.f_lasti, now, now, 0)
        self._ring[number % self._capacity] = record
        return record

    def message(
        self, call: str, dtype: str, count: int | None, peer: int, tag: int, depth: int = 3
    ) -> Record:
        """One to or from rank `peer` of the group. Its sequence counts those of the same call,
        peer and tag, so that the n-th sent is the n-th received.
        """
        key = call, peer, tag
        self._counts[key] = sequence = self._counts.get(key, 0) + 1
        frame, number, now = _getframe(depth), next(self._numbers), monotonic_ns()
        record = [number, self, sequence, call, tag, dtype, count, peer]
        record += (frame.f_code, frame.f_lasti, now, now, 0)
        self._ring[number % self._capacity] = record
        return record
