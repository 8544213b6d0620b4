"""Recursive halving and doubling, for any number of ranks: as few words as a ring in 2 ceil(log2 P)
messages.

Blocks are numbered from each rank's own: block i of rank r is the global block (r + i) mod P. P = 5
skips by 5, 3, 2, 1:

    halving    send blocks 3..4 to rank r + 3, add what comes from r - 3 to blocks 0..1
               send block  2    to rank r + 2, add what comes from r - 2 to block  0
               send block  1    to rank r + 1, add what comes from r - 1 to block  0
               block 0, its own, is complete
    doubling   the same backwards: send block 0 to r - 1, receive block 1 from r + 1, and so on

For powers of two these are Rabenseifner's rounds (R. Rabenseifner, "Optimization of collective
reduction operations", ICCS 2004, section 3); the circulant skips make any P as cheap (J. L. Träff,
"Optimal, non-pipelined reduce-scatter and allreduce algorithms", arXiv 2410.14234, algorithms 1 and
2).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from dist_ml.comm.allreduce.base import MessageAllreduce, Op
from dist_ml.comm.allreduce.generator_request import Steps
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words
from dist_ml.partition import Range, block

Take: TypeAlias = Callable[[Array, Array], None]


class Round(NamedTuple):
    """One round of halving: blocks [low, high) go to rank + low; blocks [0, high - low) are
    received for, from rank - low.
    """

    low: int
    high: int


class Rabenseifner(MessageAllreduce):
    """Words sent: 2n - own - (the n elements' blocks are uneven by one at most); messages: 2
    ceil(log2 P), fewer if n < P.

    The best for short vectors between nodes, where messages cost more than words. With a 16-bit
    wire partial sums are rounded once a round.
    """

    name = "rabenseifner"

    def __init__(self, comm: Communicator, wire: WireName = "fp32") -> None:
        super().__init__(comm)
        self.wire = Wire(wire)

    def steps(self, array: Array, op: Op, tag: int) -> Steps:
        self.wire.check(array.dtype)
        return rabenseifner_steps(self.comm, array, op, tag, self.wire)

    def words(self, n: int, item_bytes: int = 4) -> Words:  # noqa: ARG002
        rank, size = self.comm.rank, self.comm.size
        sent = received = messages = 0
        for low, high in rounds(size):
            for outgoing, incoming in (
                ((low, high), (0, high - low)),
                ((0, high - low), (low, high)),
            ):
                words = _count(n, rank, size, *outgoing)
                sent, messages = sent + words, messages + (words > 0)
                received += _count(n, rank, size, *incoming)
        return Words(sent, received, messages)


def rounds(size: int) -> list[Round]:
    """The rounds of halving, in order; doubling takes them backwards."""
    found = []
    high = size
    while high > 1:
        low = (high + 1) // 2
        found.append(Round(low, high))
        high = low
    return found


def rabenseifner_steps(comm: Communicator, array: Array, op: Op, tag: int, wire: Wire) -> Steps:
    """The algorithm over one communicator; see `Rabenseifner`."""
    rank, size = comm.rank, comm.size
    for low, high in rounds(size):
        outgoing = _gather(wire, array, _ranges(array.size, rank, size, low, high))
        targets = _ranges(array.size, rank, size, 0, high - low)
        incoming = wire.room(_sum(targets), array.dtype)
        yield from _exchange(
            comm, tag, outgoing, (rank + low) % size, incoming, (rank - low) % size
        )
        _scatter(wire.add, incoming, array, targets)
    own = array[block(array.size, size, rank).slice]
    if op == "mean":
        own /= size
    wire.round(own)
    for low, high in reversed(rounds(size)):
        outgoing = _gather(wire, array, _ranges(array.size, rank, size, 0, high - low))
        targets = _ranges(array.size, rank, size, low, high)
        incoming = wire.room(_sum(targets), array.dtype)
        yield from _exchange(
            comm, tag, outgoing, (rank - low) % size, incoming, (rank + low) % size
        )
        _scatter(wire.unpack, incoming, array, targets)


def _ranges(n: int, rank: int, size: int, low: int, high: int) -> list[Range]:
    """Blocks [low, high) counted from `rank`, as one range of elements, or two where they wrap
    around.
    """
    first, last = rank + low, rank + high - 1
    if first // size == last // size:
        return [Range(block(n, size, first % size).start, block(n, size, last % size).stop)]
    return [
        Range(block(n, size, first % size).start, n),
        Range(0, block(n, size, last % size).stop),
    ]


def _exchange(
    comm: Communicator, tag: int, outgoing: Array, destination: int, incoming: Array, source: int
) -> Steps:
    receiving = comm.ireceive(incoming, source, tag) if incoming.size else Request()
    sending = comm.isend(outgoing, destination, tag) if outgoing.size else Request()
    yield receiving
    yield sending


def _gather(wire: Wire, array: Array, ranges: list[Range]) -> Array:
    """One message from one or two ranges."""
    packed = [wire.pack(array[part.slice]) for part in ranges]
    return packed[0] if len(packed) == 1 else np.concatenate(packed)


def _scatter(take: Take, incoming: Array, array: Array, ranges: list[Range]) -> None:
    start = 0
    for part in ranges:
        take(incoming[start : start + part.size], array[part.slice])
        start += part.size


def _count(n: int, rank: int, size: int, low: int, high: int) -> int:
    return _sum(_ranges(n, rank, size, low, high))


def _sum(ranges: list[Range]) -> int:
    return sum(part.size for part in ranges)
