"""Who waits for whom: from the calls that have not ended, and how far each rank has come."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist_ml.flight.divergence import expected
from dist_ml.flight.flight import Call, Flight
from dist_ml.flight.recorder import ANY_PEER


@dataclass(frozen=True)
class Wait:
    """`rank` can't get out of `call` before `others` come."""

    rank: int
    call: Call
    others: tuple[int, ...]

    @property
    def since(self) -> float:
        return self.call.waited or self.call.entered


def waits(flights: Mapping[int, Flight], posted: bool = False) -> list[Wait]:
    """The oldest first. `posted`: for collectives that ranks have begun and don't wait for yet, as
    well. A rank without a record may not have come anywhere.
    """
    found = [
        Wait(rank, call, others)
        for rank, flight in flights.items()
        for call in flight.open_calls
        if call.state == "started" or (posted and not call.is_message)
        if (others := tuple(_awaited(flights, rank, call)))
    ]
    return sorted(found, key=lambda wait: wait.since)


def late_ranks(flights: Mapping[int, Flight], found: Sequence[Wait]) -> tuple[int, ...]:
    """Those that others wait for and that wait for nobody themselves: the ranks that never came.
    Of several, those without a record only if none has one. Where all wait, the one whose call does
    not follow what it followed in earlier rounds, else those that the call with most of the ranks
    in it lacks; empty where no call has most.
    """
    waiting = {wait.rank for wait in found}
    late = {other for wait in found for other in wait.others} - waiting
    present = late & flights.keys()
    return tuple(
        sorted(present or late or _elsewhere(flights, found) or _outside_of_the_fullest(found))
    )


def _elsewhere(flights: Mapping[int, Flight], found: Sequence[Wait]) -> set[int]:
    """The rank that waits in a call which its earlier ones did not lead to, and that others wait
    for; nobody where that is true of several.
    """
    strange = set()
    for wait in found:
        kind, number = wait.call.is_message, wait.call.number  # these come in one order
        calls = [c for c in flights[wait.rank].calls if c.is_message == kind and c.number < number]
        if expected([call.like for call in calls]) != wait.call.like:
            strange.add(wait.rank)
    awaited = {other for wait in found for other in wait.others}
    return strange if len(strange) == 1 and strange <= awaited else set()


def _outside_of_the_fullest(found: Sequence[Wait]) -> set[int]:
    inside: dict[tuple[str, int], set[int]] = {}
    for wait in found:
        if not wait.call.is_message:
            inside.setdefault((wait.call.group, wait.call.sequence), set()).add(wait.rank)
    fullest = sorted(inside, key=lambda call: len(inside[call]))[-2:]
    if not fullest or (len(fullest) == 2 and len({len(inside[call]) for call in fullest}) == 1):
        return set()
    calls = (w for w in found if (w.call.group, w.call.sequence) == fullest[-1])
    return {other for wait in calls for other in wait.others}


def _awaited(flights: Mapping[int, Flight], rank: int, call: Call) -> Iterator[int]:
    if call.is_message:
        peer = call.peer
        if peer is not None and peer != ANY_PEER and not _is_matched(flights.get(peer), rank, call):
            yield peer
        return
    members = flights[rank].groups[call.group].ranks
    late = [r for r in members if r != rank and _reached(flights, r, call.group) < call.sequence]
    yield from late or _not_waiting(flights, rank, call, members)


def _reached(flights: Mapping[int, Flight], rank: int, group: str) -> int:
    """How many of the group's collectives the rank has begun."""
    if rank not in flights or group not in flights[rank].groups:
        return 0
    return flights[rank].groups[group].collectives


def _not_waiting(
    flights: Mapping[int, Flight], rank: int, call: Call, members: Sequence[int]
) -> Iterator[int]:
    """All have begun it, but a request moves only while its rank looks at it."""
    if call.state == "started":
        same = call.group, call.sequence, False
        for other in members:
            for theirs in flights[other].open_calls:
                place = theirs.group, theirs.sequence, theirs.is_message
                if theirs.state == "scheduled" and place == same and other != rank:
                    yield other


def _is_matched(peer: Flight | None, rank: int, call: Call) -> bool:
    """Has the peer made its side of the message? One that it has only posted moves when it looks at
    it.
    """
    other_side = "send" if call.call == "receive" else "receive"
    wanted = other_side, rank, call.group, call.detail, call.sequence
    return peer is not None and any(
        (theirs.call, theirs.peer, theirs.group, theirs.detail, theirs.sequence) == wanted
        for theirs in peer.calls
        if theirs.state != "scheduled"
    )
