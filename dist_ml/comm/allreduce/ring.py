"""Ring: each block travels once around the ranks to be summed, and once more to be told.

With P = 3 and blocks 0, 1, 2 (one a rank); each arrow is a message to the right-hand neighbour, in
segments that follow each other without a gap:

    step        rank 0        rank 1        rank 2
    0  reduce   sends 2 ->    sends 0 ->    sends 1 ->
    1  reduce   sends 1 ->    sends 2 ->    sends 0 ->     after it rank r holds the sum of block r
    2  gather   sends 0 ->    sends 1 ->    sends 2 ->
    3  gather   sends 2 ->    sends 0 ->    sends 1 ->

Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC
69(2), 2009, section 4.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from dist_ml.comm.allreduce.base import MessageAllreduce, Op
from dist_ml.comm.allreduce.generator_request import Steps
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words
from dist_ml.partition import Range, block, pieces

SEGMENT_BYTES = (
    1 << 20
)  # 512 KiB to 2 MiB measured alike at 1 Gbit/s; shorter ones cost messages, longer ones gaps
AHEAD = 4  # receives that are posted before their segment is needed


class Slot(NamedTuple):
    """One message of a rank's slots_of: which elements, and whether what comes is a part of a sum
    or the whole sum.
    """

    where: Range
    gathered: bool


class Local(NamedTuple):
    """What a rank does with its own memory on the way, range by range, while other ranges are on
    the wire.
    """

    prepare: Callable[[Range], None] = lambda _: (
        None
    )  # before the first use of what it adds to the sum
    finish: Callable[[Range], None] = lambda _: None  # after the whole sum stands there


NOTHING = Local()


class Ring(MessageAllreduce):
    """Words sent: 2n less this rank's and its right-hand neighbour's blocks: 2n(P-1)/P where P
    divides n. One message a segment.

    The best where the network is the limit and n is large: every link is busy in both directions
    all the time. With a 16-bit wire partial sums are rounded once a step.
    """

    name = "ring"

    def __init__(
        self, comm: Communicator, wire: WireName = "fp32", segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        super().__init__(comm)
        self.wire = Wire(wire)
        self.segment_bytes = segment_bytes

    def steps(self, array: Array, op: Op, tag: int) -> Steps:
        self.wire.check(array.dtype)
        divisor = self.comm.size if op == "mean" else 1
        return ring_steps(
            self.comm, array, divisor, tag, self.wire, self.segment_words(array.itemsize)
        )

    def words(self, n: int, item_bytes: int = 4) -> Words:
        sent, received = slots_of(n, self.comm.rank, self.comm.size, self.segment_words(item_bytes))
        return Words(_total(sent), _total(received), sum(slot.where.size > 0 for slot in sent))

    def segment_words(self, item_bytes: int) -> int:
        return max(1, self.segment_bytes // self.wire.word_bytes(item_bytes))


def slots_of(n: int, rank: int, size: int, segment_words: int) -> tuple[list[Slot], list[Slot]]:
    """What `rank` sends to its right and receives from its left, in order. Every step has the same
    number of slots.

    What is received in slot i is sent on in slot i + (slots of a step).
    """
    num_segments = max(1, -(-block(n, size, 0).size // segment_words))
    sent, received = [], []
    for step in range(2 * (size - 1)):
        sent += _slots(n, rank - step - 1, size, num_segments, segment_words, step >= size - 1)
        received += _slots(n, rank - step - 2, size, num_segments, segment_words, step >= size - 1)
    return sent, received


def ring_steps(
    comm: Communicator,
    array: Array,
    divisor: int,
    tag: int,
    wire: Wire,
    segment_words: int,
    local: Local = NOTHING,
) -> Steps:
    """The algorithm over one communicator; see `Ring`. The sum is divided by `divisor`."""
    sent, received = slots_of(array.size, comm.rank, comm.size, segment_words)
    per_step = len(sent) // (2 * (comm.size - 1))
    ahead = min(
        AHEAD, comm.size * per_step
    )  # further ahead, what is to be overwritten would not be sent yet
    sending: list[Request] = []
    arriving: deque[tuple[Array, Request]] = deque()
    own = range(
        (comm.size - 2) * per_step, (comm.size - 1) * per_step
    )  # the slots in which this rank's own block is complete
    for slot in sent[:per_step]:
        local.prepare(slot.where)
        sending.append(_send(comm, tag, wire, array, slot))
    posted = 0
    for i, slot in enumerate(received):
        while posted < min(i + ahead, len(received)):
            if received[posted].gathered:  # it lands where an earlier message was sent from
                yield sending[posted - (comm.size - 1) * per_step]
            arriving.append(_receive(comm, tag, wire, array, received[posted]))
            posted += 1
        if not slot.gathered:
            local.prepare(slot.where)
        packed, request = arriving.popleft()
        yield request
        _take(wire, packed, array, slot)
        if i in own:
            _complete(wire, array[slot.where.slice], divisor)
        if i + per_step < len(sent):
            sending.append(_send(comm, tag, wire, array, sent[i + per_step]))
        if slot.gathered or i in own:
            local.finish(slot.where)
    yield from sending


def _slots(
    n: int, owner: int, size: int, num_segments: int, segment_words: int, gathered: bool
) -> list[Slot]:
    whole = block(n, size, owner % size)
    cut = [
        Range(whole.start + piece.start, whole.start + piece.stop)
        for piece in pieces(whole.size, segment_words)
    ]
    cut += [Range(whole.stop, whole.stop)] * (num_segments - len(cut))
    return [Slot(where, gathered) for where in cut]


def _send(comm: Communicator, tag: int, wire: Wire, array: Array, slot: Slot) -> Request:
    if slot.where.size == 0:
        return Request()
    return comm.isend(wire.pack(array[slot.where.slice]), (comm.rank + 1) % comm.size, tag)


def _receive(
    comm: Communicator, tag: int, wire: Wire, array: Array, slot: Slot
) -> tuple[Array, Request]:
    target = array[slot.where.slice]
    packed = target if slot.gathered and wire.in_place else wire.room(slot.where.size, array.dtype)
    if slot.where.size == 0:
        return packed, Request()
    return packed, comm.ireceive(packed, (comm.rank - 1) % comm.size, tag)


def _take(wire: Wire, packed: Array, array: Array, slot: Slot) -> None:
    target = array[slot.where.slice]
    if not slot.gathered:
        wire.add(packed, target)
    elif not wire.in_place:
        wire.unpack(packed, target)


def _complete(wire: Wire, target: Array, divisor: int) -> None:
    """`target` holds the sum over all ranks."""
    if divisor != 1:
        target /= divisor
    wire.round(target)


def _total(slots: list[Slot]) -> int:
    return sum(slot.where.size for slot in slots)
