"""Ok-Topk: near-optimal words, at most 6k(P-1)/P, whatever the ranks select."""

from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.adjust_threshold import adjust_threshold
from dist_ml.comm.sparse.entries import Entries, concatenate, largest_mask
from dist_ml.comm.sparse.exchange import (
    TAG,
    Settings,
    SparseSum,
    Stateless,
    allgather_regions,
    gather_sizes,
    split_to_owners,
)
from dist_ml.comm.sparse.gathering import allgather_messages
from dist_ml.comm.sparse.merge import merge_all
from dist_ml.comm.sparse.regions import BalancedRegions
from dist_ml.partition import Range, blocks

# Survivors are dealt evenly before the gather when the fullest rank holds this many times its
# share. At 1.5, a gather that is not balanced stays within the words of one that is, plus the
# balancing.
IMBALANCE = 1.5
# Survivors over k that a reused threshold may let through: with more, the gather would break the
# bound of 6k(P-1)/P words.
MOST = 4 / 3


class OkTopk(Stateless):
    """Top-k of the sum, not the sum of top-k (Li and Hoefler, PPoPP 2022, section 3 and algorithm
    1).

    own entries   |a a|b|c c c|   1. cut at the balanced boundaries (renewed every tau steps)
                   \\ | /          2. send region i to rank i, destinations rotated; add
    region        |sum of region| 3. keep what reaches the global threshold (exact every tau')
    survivors     |s s s|s| |     4. deal them evenly if they are not
    everybody     |s s s s s s|   5. allgather

    Words: 2k(P-1)/P in step 2, up to as many in step 4, about as many in step 5.

    Messages P - 1, those of the balancing, and one allgather. Returned: own entries that did not
    survive, whole.
    """

    def __init__(self, comm: Communicator, length: int, settings: Settings | None = None) -> None:
        super().__init__(comm, length, settings)
        self._regions = BalancedRegions(comm, length, self.settings.repartition_steps)
        self._threshold = 0.0
        self._smallest = 0.0
        self._age = 0

    def reduce(self, own: Entries, k: int) -> SparseSum:
        if self.comm.size == 1:
            return SparseSum(own)
        with self.comm.traffic.labelled("sparse oktopk control"):
            self._regions.renew(own)  # 1
        with self.comm.traffic.labelled("sparse oktopk"):
            pieces = own.cut(self._regions.boundaries)
            arrived, sent, lost = split_to_owners(self.comm, self.wire, pieces)  # 2
            region = merge_all(arrived)
        self._follow(own)
        survivors, sizes = self._survivors(region, k)  # 3
        with self.comm.traffic.labelled("sparse oktopk"):
            survivors = balance(self.comm, survivors, sizes)  # 4
            total, last = allgather_regions(self.comm, self.wire, survivors)  # 5
        return SparseSum(total, returned=[*lost, last, missing(sent, total)])

    def _follow(self, own: Entries) -> None:
        """Let the reused threshold follow this rank's own smallest selected magnitude, which grows
        and shrinks with the gradient.

        Owners may differ in it: each decides for its own region only.
        """
        smallest = float(np.abs(own.values).min()) if own.size else 0.0
        if self._smallest and smallest:
            self._threshold *= min(2.0, max(0.5, smallest / self._smallest))
        self._smallest = smallest

    def _survivors(self, region: Entries, k: int) -> tuple[Entries, list[int]]:
        """The region's entries at or above the global threshold, and how many every rank has."""
        magnitudes = np.abs(region.values)
        with self.comm.traffic.labelled("sparse oktopk control"):
            if self._age % self.settings.threshold_steps == 0:
                self._threshold = exact_threshold(self.comm, magnitudes, k)
            survivors = region.where(magnitudes >= self._threshold)
            sizes = gather_sizes(self.comm, survivors.size)
            if (
                sum(sizes) > MOST * k
            ):  # reuse has failed: the exact threshold is that of the survivors
                self._threshold = max(
                    self._threshold, exact_threshold(self.comm, np.abs(survivors.values), k)
                )
                survivors = survivors.where(np.abs(survivors.values) >= self._threshold)
                sizes = gather_sizes(self.comm, survivors.size)
        self._age += 1
        self._threshold = adjust_threshold(self._threshold, sum(sizes), k, self.length)
        return survivors, sizes

    def state_dict(self) -> dict[str, Any]:
        return {
            "age": self._age,
            "threshold": self._threshold,
            "smallest": self._smallest,
            "regions": self._regions.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._age = state["age"]
        self._threshold = state["threshold"]
        self._smallest = state["smallest"]
        self._regions.load_state_dict(state["regions"])


def exact_threshold(comm: Communicator, magnitudes: Array, k: int) -> float:
    """The k-th largest magnitude over all ranks, the same on all; 0 where there are fewer.

    Words: each rank sends its k largest at most to every other rank, (P - 1) min(k, its entries).
    """
    mine = magnitudes[largest_mask(magnitudes, k)]
    everybody = np.concatenate(allgather_messages(comm, mine))
    if everybody.size <= k:
        return 0.0
    return float(np.partition(everybody, everybody.size - k)[everybody.size - k])


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


def missing(own: Entries, total: Entries) -> Entries:
    """The entries of `own` whose index is not in `total`."""
    if not total.size:
        return own
    at = np.minimum(np.searchsorted(total.indices, own.indices), total.size - 1)
    return own.where(total.indices[at] != own.indices)
