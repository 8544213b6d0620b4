"""Which calls of different ranks belong together, and how arrows lead between them.

    message      from the send's start to the receive's end
    collective   from the start of the rank that came last (of a broadcast, the root's) to the end
                 of each other one, since none of them could end before

Every rank sends a row for each of its calls to the rank that `key` names, which sees all rows of
a key, and answers where the arrow begins. So no rank holds more than its share of all calls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dist_ml.comm.communicator import Communicator
from dist_ml.trace.calls import TracedCall, hashed

Numbers = npt.NDArray[np.int64]

_KEY, _START, _STOP, _SIZE, _IS_SOURCE = range(5)
_NONE = -1


class End(NamedTuple):
    """One end of an arrow, at the call number `call` of this rank. Both ends have the `name`."""

    call: int
    name: int
    begins: bool


def arrow_ends(
    comm: Communicator, calls: Sequence[TracedCall], rank: int, clock_error: int = 0
) -> list[End]:
    """Those at this rank's calls, which is `rank` of the world. Both ends of an arrow are there,
    or none: calls whose other side was not traced have none, nor have collectives of which a rank
    did not wait for the last, by more than `clock_error` ns. Collective, by 48 bytes a call.
    """
    matched = [number for number, call in enumerate(calls) if call.key is not None]
    rows = np.array([_row(calls[number]) for number in matched], np.int64).reshape(-1, 5)
    ends = []
    for number, source in zip(matched, _ask(comm, rows, clock_error), strict=True):
        call = calls[number]
        if source != _NONE:
            begins = source == comm.rank and bool(call.targets)
            for target in call.targets if begins else (rank,):
                ends.append(End(number, hashed(f"{call.key} {target}"), begins))
    return ends


def _row(call: TracedCall) -> tuple[int, int, int, int, int]:
    assert call.key is not None
    return call.key, call.slice.start, call.slice.stop, call.size, call.is_source


def _ask(comm: Communicator, rows: Numbers, clock_error: int) -> list[int]:
    """The rank of `comm` at which the arrow of each row begins, or `_NONE`."""
    width = rows.shape[1]
    judges = rows[:, _KEY] % comm.size
    order = np.argsort(judges, kind="stable")
    counts = np.bincount(judges, minlength=comm.size).tolist()
    asked = comm.exchange_counts(counts)
    theirs = np.empty((sum(asked), width), np.int64)
    comm.alltoall(
        rows[order].reshape(-1),
        theirs.reshape(-1),
        [width * count for count in counts],
        [width * count for count in asked],
    )
    ranks = np.repeat(np.arange(comm.size), asked)
    answers = np.empty(len(rows), np.int64)
    comm.alltoall(sources(theirs, ranks, clock_error), answers, asked, counts)
    found = np.empty(len(rows), np.int64)
    found[order] = answers
    return found.tolist()


def sources(rows: Numbers, ranks: Numbers, clock_error: int) -> Numbers:
    """At which rank the arrow of each row begins; `ranks` are those that the rows came from."""
    found = np.full(len(rows), _NONE, np.int64)
    by_key: dict[int, list[int]] = {}
    for number, key in enumerate(rows[:, _KEY].tolist()):
        by_key.setdefault(key, []).append(number)
    for numbers in by_key.values():
        if len(numbers) != rows[numbers[0], _SIZE]:
            continue
        source = max(numbers, key=lambda n: (rows[n, _IS_SOURCE], rows[n, _START]))
        ended = min((rows[n, _STOP] for n in numbers if n != source), default=0)
        if rows[source, _IS_SOURCE] or rows[source, _START] < ended + clock_error:
            found[numbers] = ranks[source]
    return found
