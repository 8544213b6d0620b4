"""One clock for all ranks: rank 0's, to which others are compared by ping-pongs.

    this rank   before ──▶ ping              pong ──▶ after
    rank 0                    ──▶ moment ──▶

Rank 0 read `moment` somewhere between `before` and `after`; the middle is wrong by half of the
round trip at most. Of several the shortest is taken. Two comparisons, one before what is measured
and one after it, give the drift.

Processes that share a kernel share its monotonic clock, so one rank a node asks for all of them.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

import numpy as np

from dist_ml.comm.communicator import Communicator

_ROUNDS = 16
_TAG = 11
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")


class Reading(NamedTuple):
    """This rank's clock beside rank 0's, in ns: what is to be added to it at `moment`, and by how
    much that may be wrong either way.
    """

    moment: int
    offset: int = 0
    error: int = 0


@dataclass(frozen=True)
class Clock:
    """From this rank's monotonic clock to rank 0's, by two readings; between them the drift is
    taken to be steady.
    """

    first: Reading
    last: Reading

    @property
    def drift(self) -> float:
        """Nanoseconds that this clock loses to rank 0's in one of its own."""
        elapsed = self.last.moment - self.first.moment
        return (self.last.offset - self.first.offset) / elapsed if elapsed else 0.0

    @property
    def error(self) -> int:
        """Nanoseconds that a moment may be wrong by, either way."""
        return max(self.first.error, self.last.error)

    def reference(self, moment: int) -> int:
        """Rank 0's clock when this one shows `moment`."""
        first = self.first
        return moment + first.offset + round(self.drift * (moment - first.moment))


def clock_name() -> str:
    """The same for all processes that read the same monotonic clock; else of this process alone."""
    try:
        return f"{_BOOT.read_text().strip()} {_TIME_NAMESPACE.readlink()}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


def read(
    comm: Communicator, now: Callable[[], int] = monotonic_ns, name: str | None = None
) -> Reading:
    """Compare the clock `now` with rank 0's. `name`: of the clock, the same on the ranks that share
    it. Collective: 16 round trips of one number for each clock but rank 0's, one after the other.
    """
    moment = now()
    names = comm.allgather_objects(clock_name() if name is None else name)
    first = {name: rank for rank, name in reversed(list(enumerate(names)))}
    asking = first[names[comm.rank]]
    reading = Reading(moment)
    if comm.rank == 0:
        for rank in sorted(first.values())[1:]:
            _answer(comm, rank, now)
    elif asking == comm.rank:
        reading = _ask(comm, now)
    found: Reading = comm.allgather_objects(reading)[asking]
    return found if asking else reading


def _ask(comm: Communicator, now: Callable[[], int]) -> Reading:
    number, best = np.zeros(1, np.int64), None
    for _ in range(_ROUNDS):
        before = now()
        comm.send(number, 0, _TAG)
        comm.receive(number, 0, _TAG)
        after = now()
        found = Reading(before, int(number[0]) - (before + after) // 2, (after - before + 1) // 2)
        best = found if best is None or found.error < best.error else best
    assert best is not None
    return best


def _answer(comm: Communicator, rank: int, now: Callable[[], int]) -> None:
    number = np.zeros(1, np.int64)
    for _ in range(_ROUNDS):
        comm.receive(number, rank, _TAG)
        number[0] = now()
        comm.send(number, rank, _TAG)
