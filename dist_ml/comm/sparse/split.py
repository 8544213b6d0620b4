"""Split, reduce, and gather: each rank adds up one region of the index space."""

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse import quantise
from dist_ml.comm.sparse.base import SparseSum, Stateless, allgather_regions, split_to_owners
from dist_ml.comm.sparse.cost import CODING, WRITING, ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.gathering import allgather_messages
from dist_ml.comm.sparse.merge import merge_all
from dist_ml.partition import block, blocks, counts


class SplitAllgather(Stateless):
    """Send each region's entries to its owner, who adds them; gather the disjoint results (SparCML,
    SC 2019, section 5.3.2).

    Words 4k(P-1)/P (equal supports) to 2k(P²-1)/P (disjoint) with entries spread evenly over
    regions; P - 1 messages and one allgather.
    """

    def reduce(self, own: Entries, k: int) -> SparseSum:  # noqa: ARG002 - all that was selected is sent
        if self.comm.size == 1:
            return SparseSum(own)
        with self.comm.traffic.labelled("sparse split_allgather"):
            region, lost = self._reduce_region(own)
            total, last = allgather_regions(self.comm, self.entry_format, region)
        return SparseSum(total, returned=[*lost, last])

    def _reduce_region(self, own: Entries) -> tuple[Entries, list[Entries]]:
        """The sum over ranks of this rank's region, and what rounding lost of this rank's
        entries.
        """
        boundaries = [0, *(region.stop for region in blocks(self.length, self.comm.size))]
        arrived, _, lost = split_to_owners(self.comm, self.entry_format, own.cut(boundaries))
        return merge_all(arrived), lost


class DenseSplitAllgather(SplitAllgather):
    """Sparse reduce, dense allgather ("DSAR", SparCML, section 5.3.3), the dense half in QSGD's 2,
    4 or 8 bits if wanted.

    Words (2k + n)(P-1)/P with even regions; with QSGD of b bits the n shrinks to (b/32 + 1/1024) n.
    QSGD is unbiased and its error is not returned: the sum of inputs is the result plus what is
    returned in expectation only.
    """

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self._calls = 0

    def reduce(self, own: Entries, k: int) -> SparseSum:  # noqa: ARG002 - all that was selected is sent
        if self.comm.size == 1:
            return SparseSum(own)
        mine = block(self.length, self.comm.size, self.comm.rank)
        with self.comm.traffic.labelled("sparse dense_split_allgather"):
            region, lost = self._reduce_region(own)
            shifted = Entries(region.indices - np.int32(mine.start), region.values)
            total = self._gather(shifted.dense(mine.size))
        return SparseSum(None, total, lost)

    def _gather(self, mine: Array) -> Array:
        if not self.settings.qsgd_bits:
            return np.concatenate(allgather_messages(self.comm, mine))
        bits, sizes = self.settings.qsgd_bits, counts(self.length, self.comm.size)
        self._calls += 1
        random = np.random.default_rng([self.settings.seed, self._calls, self.comm.rank])
        coded = allgather_messages(self.comm, quantise.qsgd_encode(mine, bits, random))
        parts = zip(coded, sizes, strict=True)
        return np.concatenate(
            [quantise.qsgd_decode(part, bits, size, self.settings.dtype) for part, size in parts]
        )

    def state_dict(self) -> dict[str, int]:
        return {"calls": self._calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._calls = state["calls"]


def split_allgather_cost(size: ExchangeSize) -> ExchangeCost:
    """2k(P-1)/P to the owners, then the owners' regions, 2 filled (P-1)/P."""
    total = size.filled(size.ranks)
    num_bytes = (size.k + total) * size.entry_bytes * size.share
    return ExchangeCost(
        num_bytes,
        size.ranks - 1 + size.gathering,
        size.k * max(1, size.rounds) + total,
        total,
    )


def dense_split_allgather_cost(size: ExchangeSize) -> ExchangeCost:
    """(2k + n)(P-1)/P words; QSGD of b bits sends (b/32 + 1/1024) n instead of n."""
    element = size.qsgd_bits / 8 + 4 / quantise.BUCKET if size.qsgd_bits else size.value_bytes
    num_bytes = (size.k * size.entry_bytes + size.length * element) * size.share
    elements = WRITING * size.length + (CODING * size.length / size.ranks if size.qsgd_bits else 0)
    return ExchangeCost(
        num_bytes,
        size.ranks - 1 + size.gathering,
        size.k * max(1, size.rounds) + elements,
        size.filled(size.ranks),
    )
