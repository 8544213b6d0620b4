"""Ok-Topk: top-k of the sum, in about 4k words where ranks select alike."""

import math
from typing import Any

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.adjust_threshold import adjust_threshold
from dist_ml.comm.sparse.balance import balance
from dist_ml.comm.sparse.base import (
    Settings,
    SparseSum,
    Stateless,
    allgather_regions,
    gather_sizes,
    split_to_owners,
)
from dist_ml.comm.sparse.cost import SELECTING, ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries, magnitudes_of
from dist_ml.comm.sparse.exact_survivors import exact_survivors
from dist_ml.comm.sparse.merge import merge_all
from dist_ml.comm.sparse.regions import BalancedRegions

# Survivors over k that a reused threshold may let through; of more, the k largest are found.
MOST = 4 / 3


class OkTopk(Stateless):
    """Top-k of the sum, not the sum of top-k (Li and Hoefler, PPoPP 2022, section 3 and algorithm
    1).

    own entries   |a a|b|c c c|   1. cut at the balanced boundaries (renewed every tau steps)
                   \\ | /          2. send region i to rank i, destinations rotated; add
    region        |sum of region| 3. keep what reaches the global threshold (exact every tau')
    survivors     |s s s|s| |     4. deal them evenly if they are not
    everybody     |s s s s s s|   5. allgather

    With s entries of its own and T survivors of all ranks, T <= k at exact steps and <= 4k/3 at the
    others, a rank sends at most

        2s                   step 2, if it selects nothing of its own region; 2s(P-1)/P if its
                             entries are dealt like the ranks' average, as the paper assumes
        4T(P-1)/P + 2(P-1)   steps 4 and 5: what it holds beyond its share, and its share to all
        (k+1)(P-1)           exact steps only, one in threshold_steps: its largest magnitudes, at
                             most (as often again when a reused threshold lets 4k/3 through)
        2(P-1)               the other steps: sizes
        2P                   about, one in repartition_steps: boundaries

    words, so 6k(P-1)/P and control words for even supports, and up to 2k + 4k(P-1)/P for others:
    4k at P = 2, where the paper's bound says 3k. It receives up to 2s(P-1) words in step 2, when
    all ranks' entries are in its region, else the same.

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
            arrived, sent, lost = split_to_owners(self.comm, self.entry_format, pieces)  # 2
            region = merge_all(arrived)
        self._follow(own)
        survivors, sizes = self._survivors(region, k)  # 3
        with self.comm.traffic.labelled("sparse oktopk"):
            survivors = balance(self.comm, survivors, sizes)  # 4
            total, last = allgather_regions(self.comm, self.entry_format, survivors)  # 5
        return SparseSum(total, returned=[*lost, last, missing(sent, total)])

    def _follow(self, own: Entries) -> None:
        """Let the reused threshold follow this rank's own smallest selected magnitude, which grows
        and shrinks with the gradient.

        Owners may differ in it: each decides for its own region only.
        """
        smallest = float(np.abs(own.values).min()) if own.size else 0.0
        if not math.isfinite(smallest):
            return
        if self._smallest and smallest:
            self._threshold *= min(2.0, max(0.5, smallest / self._smallest))
        self._smallest = smallest

    def _survivors(self, region: Entries, k: int) -> tuple[Entries, list[int]]:
        """The region's entries that survive, and how many every rank has: exactly the k largest of
        all, or what reaches a threshold that is reused.
        """
        exact = self._age % self.settings.threshold_steps == 0
        self._age += 1
        with self.comm.traffic.labelled("sparse oktopk control"):
            survivors = region
            if not exact:
                survivors = region.where(magnitudes_of(region.values) >= self._threshold)
                sizes = gather_sizes(self.comm, survivors.size)
                exact = sum(sizes) > MOST * k
            if exact:
                survivors, sizes, kth = exact_survivors(self.comm, survivors, k)
                if not math.isfinite(kth):  # so on all ranks: nothing to reuse, exact again
                    self._age, kth = 0, 0.0
                self._threshold = kth
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


def missing(own: Entries, total: Entries) -> Entries:
    """The entries of `own` whose index is not in `total`."""
    if not total.size:
        return own
    at = np.minimum(np.searchsorted(total.indices, own.indices), total.size - 1)
    return own.where(total.indices[at] != own.indices)


def oktopk_cost(size: ExchangeSize) -> ExchangeCost:
    """2k(P-1)/P to the owners and 2k(P-1)/P back, for even supports and survivors."""
    num_bytes = 2 * size.k * size.entry_bytes * size.share
    entries = size.k * max(1, size.rounds) + SELECTING * (
        size.k + size.filled(size.ranks) / size.ranks
    )
    return ExchangeCost(num_bytes, size.ranks - 1 + size.rounds + size.gathering, entries, size.k)
