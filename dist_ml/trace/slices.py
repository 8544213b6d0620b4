"""What a timeline is made of."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# The tracks of a rank, in the order in which they are shown.
STEPS, PLANNED, COMPUTE, INPUT, COLLECTIVES, MESSAGES, TORCH = TRACKS = (
    "steps",
    "planned",
    "compute",
    "input",
    "collectives",
    "messages",
    "torch",
)


class Slice(NamedTuple):
    """Something that this rank did, in nanoseconds of rank 0's clock. The slices of a track and
    lane follow one another, or one holds the other.
    """

    track: str
    name: str
    start: int
    stop: int
    arguments: Mapping[str, Any] = {}
    lane: int = 0


def in_lanes(slices: Sequence[Slice]) -> list[Slice]:
    """The same slices, in their order, in as few lanes of their tracks as keep those of a lane
    apart: the next slice takes the first lane that is free.
    """
    found = list(slices)
    busy: dict[str, list[tuple[int, int]]] = {}  # of a track: until when, which lane
    free: dict[str, list[int]] = {}
    for number in sorted(range(len(found)), key=lambda n: (found[n].start, found[n].stop)):
        track, start = found[number].track, found[number].start
        ends, lanes = busy.setdefault(track, []), free.setdefault(track, [])
        while ends and ends[0][0] <= start:
            heapq.heappush(lanes, heapq.heappop(ends)[1])
        lane = heapq.heappop(lanes) if lanes else len(ends)
        heapq.heappush(ends, (found[number].stop, lane))
        found[number] = found[number]._replace(lane=lane)
    return found
