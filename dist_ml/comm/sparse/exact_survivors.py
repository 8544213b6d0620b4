"""The k largest entries over all ranks, exactly: what no threshold that is reused can promise."""

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.entries import Entries, largest_mask, magnitudes_of
from dist_ml.comm.sparse.gathering import allgather_messages


def exact_survivors(
    comm: Communicator, region: Entries, k: int
) -> tuple[Entries, list[int], float]:
    """Of all ranks' regions, which are consecutive, the k entries of largest magnitude: this rank's
    part, every rank's number of them, and the k-th magnitude (0 where there are no more than k).

    Collective. Of equal magnitudes those with the lowest indices are taken, so that there are never
    more than k, whatever the ties. NaN is the largest of all. Words: each rank sends its k + 1
    largest magnitudes at most to every other rank, (P - 1) min(k + 1, its entries): the last one
    tells that there are more.
    """
    magnitudes = magnitudes_of(region.values)
    lists = allgather_messages(comm, magnitudes[largest_mask(magnitudes, k + 1)])
    everybody = np.concatenate(lists)
    if everybody.size <= k:  # no list was cut short
        return region, [part.size for part in lists], 0.0
    threshold = np.partition(everybody, everybody.size - k)[everybody.size - k]
    above = [int(np.count_nonzero(part > threshold)) for part in lists]
    room = k - sum(above)  # for those that are as large as the k-th
    sizes = []
    for part, larger in zip(lists, above, strict=True):
        equal = min(room, int(np.count_nonzero(part == threshold)))
        room -= equal
        sizes.append(larger + equal)
    mine = region.where(largest_mask(magnitudes, sizes[comm.rank]))
    return mine, sizes, float(threshold)
