"""Consecutive entries dealt evenly over ranks, where a few ranks hold most of them."""

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.base import TAG
from dist_ml.comm.sparse.entries import Entries, concatenate
from dist_ml.partition import Range, blocks

# Entries are dealt when the fullest rank holds this many times its share. At 1.5, a gather that is
# not balanced stays within the words of one that is, plus the balancing.
IMBALANCE = 1.5


def balance(comm: Communicator, mine: Entries, sizes: list[int]) -> Entries:
    """Deal consecutive entries evenly over ranks, keeping their order, when the fullest rank has
    `IMBALANCE` times its share.
    """
    total = sum(sizes)
    if max(sizes) * comm.size <= IMBALANCE * total + comm.size:
        return mine
    ends = np.cumsum(sizes)
    held = [Range(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]
    wanted = blocks(total, comm.size)
    here = held[comm.rank]
    requests = []
    for step in range(1, comm.size):
        destination = (comm.rank + step) % comm.size
        common = here.intersect(wanted[destination])
        if common.size:
            part = mine.part(common.start - here.start, common.stop - here.start)
            requests += [
                comm.isend(np.ascontiguousarray(array), destination, TAG)
                for array in (part.indices, part.values)
            ]
    parts = [
        _receive_part(comm, mine, held, wanted[comm.rank], source) for source in range(comm.size)
    ]
    for request in requests:
        request.wait()
    return concatenate(parts)


def _receive_part(
    comm: Communicator, mine: Entries, held: list[Range], wanted: Range, source: int
) -> Entries:
    common = held[source].intersect(wanted)
    if source == comm.rank:
        return (
            mine.part(common.start - held[source].start, common.stop - held[source].start)
            if common.size
            else mine.part(0, 0)
        )
    part = Entries(np.empty(common.size, np.int32), np.empty(common.size, mine.values.dtype))
    if common.size:
        comm.receive(part.indices, source, TAG)
        comm.receive(part.values, source, TAG)
    return part
