"""The two that need no cleverness: everybody sends everything, or the dense sum that all variants
are held against.
"""

import numpy as np

from dist_ml.comm.sparse.base import SparseSum, Stateless
from dist_ml.comm.sparse.cost import ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.gathering import allgather_messages
from dist_ml.comm.sparse.merge import merge_all


class AllgatherSum(Stateless):
    """Every rank gets all ranks' entries and adds them up ("TopkA").

    Words 2k(P-1); one allgather. The result fills in to at most P k elements.
    """

    def reduce(self, own: Entries, k: int) -> SparseSum:  # noqa: ARG002 - all that was selected is sent
        if self.comm.size == 1:
            return SparseSum(own)
        encoded = self.entry_format.encode(own)
        with self.comm.traffic.labelled("sparse allgather"):
            messages = allgather_messages(self.comm, encoded.message)
        return SparseSum(
            merge_all([self.entry_format.decode(message) for message in messages]),
            returned=[encoded.lost],
        )


class DenseSum(Stateless):
    """The naive reference: make it dense, and sum in float64. Words 2n(P-1)/P, of 8 bytes."""

    def reduce(self, own: Entries, k: int) -> SparseSum:  # noqa: ARG002 - all that was selected is sent
        total = own.dense(self.length).astype(np.float64)
        with self.comm.traffic.labelled("sparse dense"):
            self.comm.allreduce(total)
        return SparseSum(None, total.astype(own.values.dtype))


def dense_cost(size: ExchangeSize) -> ExchangeCost:
    """Rabenseifner: 2n(P-1)/P words in 2 log P messages."""
    return ExchangeCost(
        2 * size.length * size.value_bytes * size.share, 2 * size.rounds, 0, size.length
    )


def allgather_cost(size: ExchangeSize) -> ExchangeCost:
    """2k(P-1) words in one allgather."""
    merged = size.k * size.ranks * max(1, size.rounds)
    return ExchangeCost(
        size.k * size.entry_bytes * (size.ranks - 1),
        size.gathering,
        merged,
        size.filled(size.ranks),
    )
