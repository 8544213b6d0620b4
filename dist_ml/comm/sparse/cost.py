"""What each sparse allreduce costs before it runs: words and messages of a rank, fill-in, and
seconds by the cost model.

Supports are taken as independent between ranks, but for a share that all have in common, and
uniform over the index space: an element is in the sum of m ranks with probability 1 - (1 - k/n)^m
(SparCML, SC 2019, section 4). Real gradients overlap, so that fill-in with nothing in common is an
upper estimate.
"""

import math
from dataclasses import dataclass

from dist_ml.comm.sparse.gathering import DIRECT_RANKS
from dist_ml.measure.cost_model import CostModel

_VALUES_PER_SCALE = 1024
# Selecting among entries, or looking them up, over merging them: 25 against 2.5 ns an entry,
# measured.
SELECTING = 10
# Coding and decoding an element with QSGD, and writing the dense result, over merging an entry: 4
# and 3 ns against 2.5.
CODING, WRITING = 1.6, 1.2


@dataclass(frozen=True)
class ExchangeSize:
    """One exchange: `length` elements, k selected by each of `ranks`; an entry takes `entry_bytes`
    in a message.
    """

    length: int
    k: int
    ranks: int
    value_bytes: int = 4
    entry_bytes: float = 8.0
    qsgd_bits: int = 0
    common: float = 0.0  # share of a rank's entries that all ranks have at the same places

    def filled(self, num_ranks: float) -> float:
        """The expected elements of the sum of so many ranks."""
        shared = self.common * self.k
        miss = math.log1p(-min((self.k - shared) / self.length, 1 - 1e-12))
        return shared + (self.length - shared) * -math.expm1(num_ranks * miss)

    def message_bytes(self, entries: float) -> float:
        """Bytes of a message that may be sparse or dense, whichever is smaller."""
        return min(entries * self.entry_bytes, float(self.length * self.value_bytes))

    @property
    def share(self) -> float:
        return (self.ranks - 1) / self.ranks

    @property
    def gathering(self) -> int:
        """Messages of an allgather: straight to everybody among few ranks, else in log P rounds."""
        return self.ranks - 1 if self.ranks <= DIRECT_RANKS else self.rounds

    @property
    def rounds(self) -> int:
        """log2 P, rounded up."""
        return (self.ranks - 1).bit_length()


@dataclass(frozen=True)
class ExchangeCost:
    """The cost of one exchange for the rank that bears most of it."""

    num_bytes: float  # sent, or received where that is more
    messages: float  # one after another, on the longest path
    entries: float  # merged, or as many merges' worth of other work on them
    result: float  # elements of the sum that are not zero

    @property
    def words(self) -> float:
        """32-bit words."""
        return self.num_bytes / 4

    def seconds(self, model: CostModel) -> float:
        return model.seconds(self.messages, self.words, 4) + self.entries * model.entry_seconds


def entry_bytes(length: int, k: int, value_bytes: int, values: str) -> float:
    """What one entry takes in a message: coded gaps are geometric with mean
    n/k.
    """
    if values == "plain":
        return 4.0 + value_bytes
    per_value = {"fp32": float(value_bytes), "bf16": 2.0, "int4": 0.5 + 4 / _VALUES_PER_SCALE}[
        values
    ]
    miss = 1 - min(k / length, 1.0)
    gap_bytes = 1 + sum(miss ** (1 << bits) for bits in (7, 14, 21, 28))
    return per_value + min(4.0, gap_bytes, length / k / 8)
