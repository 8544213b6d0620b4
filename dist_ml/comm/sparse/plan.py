"""What each sparse allreduce costs before it runs: words and messages of a rank, fill-in, and
seconds by the cost model.

Supports are taken as independent between ranks, but for a share that all have in common, and
uniform over the index space: an element is in the sum of m ranks with probability 1 - (1 - k/n)^m
(SparCML, SC 2019, section 4). Real gradients overlap, so that fill-in with nothing in common is an
upper estimate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dist_ml.comm.sparse.gathering import DIRECT_RANKS
from dist_ml.measure.cost_model import CostModel

BUCKET = 1024
# Selecting among entries, or looking them up, over merging them: 25 against 2.5 ns an entry,
# measured.
SELECTING = 10
# Coding and decoding an element with QSGD, and writing the dense result, over merging an entry: 4
# and 3 ns against 2.5.
CODING, WRITING = 1.6, 1.2


@dataclass(frozen=True)
class Problem:
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

    def message(self, entries: float) -> float:
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
class Plan:
    """The cost of one exchange for the rank that bears most of it."""

    name: str
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


def dense(p: Problem) -> Plan:
    """Rabenseifner: 2n(P-1)/P words in 2 log P messages."""
    return Plan("dense", 2 * p.length * p.value_bytes * p.share, 2 * p.rounds, 0, p.length)


def allgather(p: Problem) -> Plan:
    """2k(P-1) words in one allgather."""
    merged = p.k * p.ranks * max(1, p.rounds)
    return Plan(
        "allgather", p.k * p.entry_bytes * (p.ranks - 1), p.gathering, merged, p.filled(p.ranks)
    )


def gtopk(p: Problem) -> Plan:
    """4k log P words in 2 log P messages."""
    entries = (2 * p.k + SELECTING * p.filled(2)) * p.rounds
    return Plan("gtopk", 2 * p.k * p.entry_bytes * p.rounds, 2 * p.rounds, entries, p.k)


def recursive_doubling(p: Problem) -> Plan:
    """The sum over steps of what 2^s ranks together hold, in log P messages, two more when P is no
    power of two.
    """
    power = 1 << (p.ranks.bit_length() - 1)
    steps = [p.filled(1 << step) for step in range(power.bit_length() - 1)]
    folded = [] if power == p.ranks else [p.k, p.filled(p.ranks)]
    merged = sum(2 * entries for entries in steps)
    num_bytes = sum(p.message(entries) for entries in [*steps, *folded])
    return Plan(
        "recursive_doubling", num_bytes, len(steps) + len(folded), merged, p.filled(p.ranks)
    )


def split_allgather(p: Problem) -> Plan:
    """2k(P-1)/P to the owners, then the owners' regions, 2 filled (P-1)/P."""
    total = p.filled(p.ranks)
    num_bytes = (p.k + total) * p.entry_bytes * p.share
    return Plan(
        "split_allgather",
        num_bytes,
        p.ranks - 1 + p.gathering,
        p.k * max(1, p.rounds) + total,
        total,
    )


def dense_split_allgather(p: Problem) -> Plan:
    """(2k + n)(P-1)/P words; QSGD of b bits sends (b/32 + 1/1024) n instead of n."""
    element = p.qsgd_bits / 8 + 4 / BUCKET if p.qsgd_bits else p.value_bytes
    num_bytes = (p.k * p.entry_bytes + p.length * element) * p.share
    elements = WRITING * p.length + (CODING * p.length / p.ranks if p.qsgd_bits else 0)
    return Plan(
        "dense_split_allgather",
        num_bytes,
        p.ranks - 1 + p.gathering,
        p.k * max(1, p.rounds) + elements,
        p.filled(p.ranks),
    )


def oktopk(p: Problem) -> Plan:
    """2k(P-1)/P to the owners and 2k(P-1)/P back; at most 6k(P-1)/P when survivors have to be dealt
    again.
    """
    num_bytes = 2 * p.k * p.entry_bytes * p.share
    entries = p.k * max(1, p.rounds) + SELECTING * (p.k + p.filled(p.ranks) / p.ranks)
    return Plan("oktopk", num_bytes, p.ranks - 1 + p.rounds + p.gathering, entries, p.k)


def spardl(p: Problem) -> Plan:
    """4k(P-1)/P words in log P messages and an allgather."""
    entries = 2 * p.k * p.share + SELECTING * p.k * (0.5 + 2 * p.share)
    return Plan("spardl", 2 * p.k * p.entry_bytes * p.share, p.rounds + p.gathering, entries, p.k)


PLANS: dict[str, Callable[[Problem], Plan]] = {
    "dense": dense,
    "allgather": allgather,
    "gtopk": gtopk,
    "recursive_doubling": recursive_doubling,
    "split_allgather": split_allgather,
    "dense_split_allgather": dense_split_allgather,
    "oktopk": oktopk,
    "spardl": spardl,
}


def entry_bytes(length: int, k: int, value_bytes: int, values: str) -> float:
    """What one entry takes in a message of that wire format: coded gaps are geometric with mean
    n/k.
    """
    if values == "plain":
        return 4.0 + value_bytes
    per_value = {"fp32": float(value_bytes), "bf16": 2.0, "int4": 0.5 + 4 / BUCKET}[values]
    miss = 1 - min(k / length, 1.0)
    gap_bytes = 1 + sum(miss ** (1 << bits) for bits in (7, 14, 21, 28))
    return per_value + min(4.0, gap_bytes, length / k / 8)
