"""A cost model measured in about a second: a ring of messages of several sizes, a copy, and a
merge.
"""

import statistics
from collections.abc import Callable

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.merge import merge
from dist_ml.measure.compare import seconds_per_call
from dist_ml.measure.cost_model import CostModel, fit

_TAG = 30_999
# Beyond what shaped links and socket buffers let through at once; the largest is left out where the
# one before took long.
_SIZES_BYTES = (4, 1 << 20, 1 << 23)
_REPEATS = {4: 10, 1 << 20: 3, 1 << 23: 2}
_LONG_SECONDS = 0.05
_COPY_WORDS = 4_000_000
_MERGED_ENTRIES = 500_000


def probe(comm: Communicator) -> CostModel:
    """What messages, copies and merges cost over this group, the same on all ranks. Collective.

    All ranks send to their right-hand neighbour at once, and copy and merge at once, as sparse
    exchanges do, and the last one's time counts: a link or a core that is shared shows as such. Not
    counted in the ledger's totals of a step: call it at set-up.
    """
    source, target = np.zeros(_COPY_WORDS, np.float32), np.zeros(_COPY_WORDS, np.float32)
    left, right = _lists()
    merge(left.part(0, 9), right.part(0, 9))  # compiles
    with comm.traffic.labelled("probe"):
        samples: list[tuple[float, float]] = []
        for size in _SIZES_BYTES:
            if not samples or samples[-1][1] < _LONG_SECONDS:
                samples.append((float(size), _ring_seconds(comm, size)))
        copy = _together(comm, lambda: np.copyto(target, source), 5)
        merged = _together(comm, lambda: merge(left, right), 5)
    link = fit(samples)
    return CostModel(link, link, _COPY_WORDS * 4 / copy, merged / _MERGED_ENTRIES)


def _together(comm: Communicator, action: Callable[[], object], repeats: int) -> float:
    """Seconds until the last rank has done what all began together; the median of some
    repetitions.
    """
    return statistics.median(seconds_per_call(comm, action) for _ in range(repeats))


def _ring_seconds(comm: Communicator, num_bytes: int) -> float:
    outgoing, incoming = np.zeros(num_bytes, np.uint8), np.empty(num_bytes, np.uint8)

    def pass_on() -> None:
        request = comm.isend(outgoing, (comm.rank + 1) % comm.size, _TAG)
        comm.receive(incoming, (comm.rank - 1) % comm.size, _TAG)
        request.wait()

    return _together(comm, pass_on, _REPEATS[num_bytes])


def _lists() -> tuple[Entries, Entries]:
    """Two lists of which one entry in three is common, as of ranks that partly agree."""
    half = np.arange(_MERGED_ENTRIES // 2, dtype=np.int32)
    ones = np.ones(half.size, np.float32)
    return Entries(6 * half, ones), Entries(6 * half + 3 * (half % 3 != 0).astype(np.int32), ones)
