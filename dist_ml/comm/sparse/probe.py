"""A cost model measured in under a second: a ring of messages of several sizes, and a copy."""

import time

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.measure.cost_model import CostModel, Link, fit

_TAG = 30_999
_SIZES_BYTES = (4, 65_536, 1_048_576)
_REPEATS = {4: 10, 65_536: 3, 1_048_576: 2}
_COPY_WORDS = 4_000_000


def probe(comm: Communicator) -> CostModel:
    """What messages and copies cost over this group, the slowest rank's figures, the same on all ranks. Collective.

    All ranks send to their right-hand neighbour at once, as sparse exchanges do, so a link that is shared shows as such. Not
    counted in the ledger's totals of a step: call it at set-up.
    """
    with comm.traffic.labelled("probe"):
        samples = np.array([_ring_seconds(comm, size) for size in _SIZES_BYTES]) if comm.size > 1 else np.full(3, 1e-6)
        copy = np.array([_copy_seconds()])
        comm.allreduce(samples, "max")
        comm.allreduce(copy, "max")
    link = fit([(float(size), float(seconds)) for size, seconds in zip(_SIZES_BYTES, samples, strict=True)])
    link = Link(link.latency_seconds, link.bytes_per_second)
    return CostModel(link, link, _COPY_WORDS * 4 / float(copy[0]))


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
