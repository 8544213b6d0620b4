"""Records of the flight recorder as slices, each with what tells it from all other calls of the
job, so that the ranks which took part find each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from dist_ml.flight import recorder as at
from dist_ml.flight.recorder import ANY_PEER, Record
from dist_ml.trace.clock import Clock
from dist_ml.trace.slices import COLLECTIVES, MESSAGES, Slice

_ONE_TO_ALL = ("broadcast", "broadcast_object")


@dataclass(frozen=True)
class TracedCall:
    """`key` is the same on all ranks that took part, `size` how many calls have it; None where that
    can't be told. `targets`: the world's ranks that an arrow from here would lead to.
    `is_source`: what the others get comes from here, whoever came last.
    """

    slice: Slice
    key: int | None
    size: int
    targets: tuple[int, ...]
    is_source: bool


def traced_calls(
    records: Iterable[Record], clock: Clock, shown: Mapping[int, int], rank: int
) -> list[TracedCall]:
    """Of this rank, `rank` of the world; calls that have not ended are left out. `shown`: the
    numbers by which a timeline names the world's ranks.
    """
    return [
        _message(record, clock, shown, rank)
        if record[at.PEER] is not None
        else _collective(record, clock, rank)
        for record in records
        if record[at.ENDED]
    ]


def _message(record: Record, clock: Clock, shown: Mapping[int, int], rank: int) -> TracedCall:
    group, sends = record[at.GROUP], record[at.CALL] == "send"
    if record[at.PEER] == ANY_PEER:
        return TracedCall(_slice(record, clock, MESSAGES, "receive from any"), None, 0, (), False)
    peer = group.members[record[at.PEER]]
    source, target = (rank, peer) if sends else (peer, rank)
    sequence = record[at.SEQUENCE]
    key = hashed(f"{group.name} {source}>{target} tag {record[at.DETAIL]} {sequence}")
    name = f"send to {shown[peer]}" if sends else f"receive from {shown[peer]}"
    targets = (peer,) if sends else ()
    return TracedCall(_slice(record, clock, MESSAGES, name), key, 2, targets, sends)


def _collective(record: Record, clock: Clock, rank: int) -> TracedCall:
    group, call = record[at.GROUP], record[at.CALL]
    root = record[at.DETAIL] if call in _ONE_TO_ALL else None
    return TracedCall(
        _slice(record, clock, COLLECTIVES, call),
        hashed(f"{group.name} {record[at.SEQUENCE]}"),
        len(group.members),
        tuple(member for member in group.members if member != rank),
        root is not None and group.members[root] == rank,
    )


def _slice(record: Record, clock: Clock, track: str, name: str) -> Slice:
    start = clock.reference(record[at.ENTERED])
    stop = max(start, clock.reference(record[at.ENDED]))
    arguments: dict[str, Any] = {
        "group": record[at.GROUP].name,
        "number": record[at.SEQUENCE],
        "dtype": record[at.DTYPE],
        "count": record[at.COUNT],
        "by": record[at.CODE].co_qualname,
    }
    if record[at.DETAIL] is not None:
        arguments["tag" if track == MESSAGES else "detail"] = record[at.DETAIL]
    if record[at.WAITED]:
        arguments["waited_us"] = (record[at.ENDED] - record[at.WAITED]) / 1000
    return Slice(track, name, start, stop, arguments)


def hashed(text: str) -> int:
    """63 bits of it."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
