"""Did a rank leave a message out that another one waits for? Programs repeat themselves: what a
rank made once between two calls alike, in each earlier round, it should have made in the last one.
"""

from bisect import bisect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dist_ml.flight.flight import Call, Flight
from dist_ml.flight.waits import Wait

_LEAST_ROUNDS = 2


@dataclass(frozen=True)
class LeftOut:
    """`rank` never made its side of what `wait` is for, and went on to `later`."""

    rank: int
    wait: Wait
    later: Call


def left_out_message(flights: Mapping[int, Flight], found: Sequence[Wait]) -> LeftOut | None:
    """Of the waits, the first for a message that its other side has left out."""
    for wait in found:
        call = wait.call
        for rank in wait.others:
            if call.is_message and rank in flights:
                side = "send" if call.call == "receive" else "receive"
                missing = side, wait.rank, call.group, call.detail
                if later := _made_without(flights[rank].calls, missing):
                    return LeftOut(rank, wait, later)
    return None


def _made_without(calls: Sequence[Call], missing: Hashable) -> Call | None:
    """The first call since whose like the rank should have made `missing` once more."""
    places: dict[Hashable, list[int]] = {}
    for number, call in enumerate(calls):
        places.setdefault(call.like, []).append(number)
    made = places.pop(missing, [])
    late = []
    for same in places.values():
        rounds = [bisect(made, stop) - bisect(made, start) for start, stop in pairwise(same)]
        *before, last = rounds or [0]
        if last == 0 and len(before) >= _LEAST_ROUNDS and {*before} == {1}:
            late.append(same[-1])
    return calls[min(late)] if late else None
