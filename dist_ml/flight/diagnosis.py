"""What the records of all ranks say of a job that hangs, in words: the first call in which ranks
differ, else the rank that others wait for.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dist_ml.flight.divergence import Divergence, first_divergence
from dist_ml.flight.flight import Flight
from dist_ml.flight.left_out import LeftOut, left_out_message
from dist_ml.flight.waits import Wait, late_ranks, waits

Kind = Literal["diverged", "late", "circle", "nothing"]
_AWAY = "it left no record: it is stopped or dead, or its node does not share this folder"
_MAIN = "MainThread"


@dataclass(frozen=True)
class Finding:
    """`ranks`: which did it; all that take part where that can't be told."""

    kind: Kind
    ranks: tuple[int, ...]
    words: str


def diagnose(flights: Mapping[int, Flight], away: Mapping[int, str] | None = None) -> Finding:
    """Of the flights by rank. `away`: what is known of ranks without one."""
    divergence = first_divergence(flights)
    if divergence is not None:
        return Finding("diverged", divergence.odd, _diverged(flights, divergence))
    found = waits(flights)
    if left_out := left_out_message(flights, found):
        return Finding("diverged", (left_out.rank,), _left_out(flights, left_out))
    late = late_ranks(flights, found)
    if not late:
        found = waits(flights, posted=True)
        late = late_ranks(flights, found)
    if late:
        return Finding("late", late, "; ".join(_late(flights, away or {}, found, r) for r in late))
    if found:
        ranks = tuple(sorted({wait.rank for wait in found}))
        listed = "; ".join(_waiting(wait) for wait in _first_of_each(found))
        return Finding("circle", ranks, f"ranks wait for each other: {listed}")
    return Finding("nothing", (), "no rank with a record waits for another")


def standing(flight: Flight) -> str:
    """The call that it waits in, else the innermost line of its main thread."""
    for call in flight.open_calls:
        if call.state == "started":
            return f"it waits in {call} at {call.place}"
    stack = flight.threads.get(_MAIN)
    return f"it stood in {stack[-1]}" if stack else "where it stood is not known"


def name_of(flights: Mapping[int, Flight], rank: int) -> str:
    """A rank with its host and process, where they are known."""
    if rank not in flights:
        return f"rank {rank}"
    return f"rank {rank} on {flights[rank].host} (process {flights[rank].pid})"


def _diverged(flights: Mapping[int, Flight], found: Divergence) -> str:
    odd, others = found.odd, found.others
    first = found.calls[odd[0]]
    if not others:
        made = Counter(str(call) for call in found.calls.values())
        listed = "; ".join(
            f"{_ranks([r for r, c in found.calls.items() if str(c) == call])} {call}"
            for call in made
        )
        return f"ranks are in different collectives: {listed}"
    usual = found.calls[others[0]]
    how = "left out" if found.left_out else "came elsewhere than to"
    who = name_of(flights, odd[0]) if len(odd) == 1 else _ranks(odd)
    return (
        f"{who} {how} {usual}, which {_ranks(others)} called at {usual.place}; "
        f"it called {first} at {first.place}"
    )


def _late(
    flights: Mapping[int, Flight], away: Mapping[int, str], found: Sequence[Wait], rank: int
) -> str:
    own = [wait for wait in found if rank in wait.others]
    first = own[0]
    same = [wait.rank for wait in own if wait.call.what == first.call.what] or [first.rank]
    where = standing(flights[rank]) if rank in flights else away.get(rank, _AWAY)
    way = "never came to" if not first.call.is_message else "never made its side of"
    return (
        f"{name_of(flights, rank)} {way} {first.call}, in which {_ranks(sorted(set(same)))} "
        f"{'wait' if len(set(same)) > 1 else 'waits'} since {_clock(first.since)} at "
        f"{first.call.place}; {where}"
    )


def _left_out(flights: Mapping[int, Flight], found: LeftOut) -> str:
    waits_in, later = found.wait.call, found.later
    return (
        f"{name_of(flights, found.rank)} left out its side of {waits_in}, in which rank "
        f"{found.wait.rank} waits since {_clock(found.wait.since)} at {waits_in.place}; it went on "
        f"to {later} at {later.place}"
    )


def _waiting(wait: Wait) -> str:
    return (
        f"rank {wait.rank} waits for {_ranks(wait.others)} since {_clock(wait.since)} in "
        f"{wait.call} at {wait.call.place}"
    )


def _first_of_each(found: Sequence[Wait]) -> list[Wait]:
    first: dict[int, Wait] = {}
    for wait in found:
        first.setdefault(wait.rank, wait)
    return list(first.values())


def _ranks(ranks: Sequence[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
