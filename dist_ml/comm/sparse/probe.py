"""A cost model measured in under a second: a ring of messages of several sizes, and a copy."""

import time

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.measure.cost_model import CostModel, fit

_TAG = 30_999
# Beyond what shaped links and socket buffers let through at once; the largest is left out where the one before took long.
_SIZES_BYTES = (4, 1 << 20, 1 << 23)
_REPEATS = {4: 10, 1 << 20: 2, 1 << 23: 1}
_LONG_SECONDS = 0.05
_COPY_WORDS = 4_000_000


def probe(comm: Communicator) -> CostModel:
    """What messages and copies cost over this group, the slowest rank's figures, the same on all ranks. Collective.

    All ranks send to their right-hand neighbour at once, as sparse exchanges do, so a link that is shared shows as such. Not
    counted in the ledger's totals of a step: call it at set-up.
    """
    with comm.traffic.labelled("probe"):
        samples: list[tuple[float, float]] = []
        for size in _SIZES_BYTES:
            if not samples or samples[-1][1] < _LONG_SECONDS:
                samples.append((float(size), _slowest(comm, _ring_seconds(comm, size))))
        copy = _slowest(comm, _copy_seconds())
    link = fit(samples)
    return CostModel(link, link, _COPY_WORDS * 4 / copy)


def _slowest(comm: Communicator, seconds: float) -> float:
    slowest = np.array([seconds])
    comm.allreduce(slowest, "max")
    return float(slowest[0])


def _ring_seconds(comm: Communicator, num_bytes: int) -> float:
    outgoing, incoming = np.zeros(num_bytes, np.uint8), np.empty(num_bytes, np.uint8)
    best = float("inf")
    for _ in range(_REPEATS[num_bytes]):
        comm.barrier()
        start = time.perf_counter()
        request = comm.isend(outgoing, (comm.rank + 1) % comm.size, _TAG)
        comm.receive(incoming, (comm.rank - 1) % comm.size, _TAG)
        request.wait()
        best = min(best, time.perf_counter() - start)
    return best


def _copy_seconds() -> float:
    source, target = np.zeros(_COPY_WORDS, np.float32), np.zeros(_COPY_WORDS, np.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        target[...] = source
        best = min(best, time.perf_counter() - start)
    return best
