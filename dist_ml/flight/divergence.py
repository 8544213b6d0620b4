"""Did two ranks make different calls in the same place? Collectives of a group are numbered by each
rank, so the n-th must be the same call on all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from dist_ml.flight.flight import Call, Flight

_What: TypeAlias = tuple[str, str | int | None, str, int | None]
_LONGEST_CONTEXT = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Divergence:
    """The first collective of a group in which ranks differ. `odd` are those that made another call
    than the others; all of them where that can't be told. `left_out`: they made the call that
    usually follows the others'.
    """

    calls: Mapping[int, Call]
    odd: tuple[int, ...]
    left_out: bool

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.calls if rank not in self.odd)


def first_divergence(flights: Mapping[int, Flight]) -> Divergence | None:
    """Of all groups the earliest one, of what the rings still hold."""
    found = [divergence for divergence in _by_group(flights) if divergence is not None]
    return min(found, key=lambda d: min(call.entered for call in d.calls.values()), default=None)


def collectives(flight: Flight, group: str) -> dict[int, Call]:
    """A rank's collectives of one group, by sequence."""
    return {c.sequence: c for c in flight.calls if c.group == group and not c.is_message}


def _by_group(flights: Mapping[int, Flight]) -> Iterator[Divergence | None]:
    for group in sorted({name for flight in flights.values() for name in flight.groups}):
        of_ranks = {rank: collectives(flight, group) for rank, flight in flights.items()}
        yield _of_group({rank: calls for rank, calls in of_ranks.items() if calls})


def _of_group(of_ranks: Mapping[int, Mapping[int, Call]]) -> Divergence | None:
    for sequence in sorted({s for calls in of_ranks.values() for s in calls}):
        calls = {rank: of[sequence] for rank, of in of_ranks.items() if sequence in of}
        if len({call.what for call in calls.values()}) > 1:
            before = max(of_ranks.values(), key=len)
            return _judged(calls, [before[s].what for s in sorted(before) if s < sequence])
    return None


def _judged(calls: Mapping[int, Call], history: Sequence[_What]) -> Divergence:
    """More ranks are right than wrong; where as many made each call, what came after the same calls
    before is right.
    """
    (usual, most), *rest = Counter(call.what for call in calls.values()).most_common()
    if rest[0][1] == most:
        habit = expected(history)
        if habit not in {call.what for call in calls.values()}:
            return Divergence(calls, tuple(calls), left_out=False)
        assert habit is not None
        usual = habit
    odd = tuple(rank for rank, call in calls.items() if call.what != usual)
    after = expected([*history, usual])
    return Divergence(calls, odd, left_out=all(calls[rank].what == after for rank in odd))


def expected(history: Sequence[T]) -> T | None:
    """What followed the longest earlier run of calls that is like the last ones."""
    best, longest = None, 0
    for end in range(len(history) - 1, 0, -1):
        length = 0
        while (
            length < min(end, _LONGEST_CONTEXT)
            and history[end - 1 - length] == history[-1 - length]
        ):
            length += 1
        if length > longest:
            best, longest = history[end], length
    return best
