"""Recursive doubling on sparse vectors that turn dense on the way when that is smaller."""

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.base import SparseSum, Stateless, receive, send
from dist_ml.comm.sparse.cost import ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.entry_format import PlainFormat
from dist_ml.comm.sparse.merge import merge

Vector = Entries | Array


class RecursiveDoubling(Stateless):
    """In step s, ranks at distance 2^s exchange and add all they have (SparCML, SC 2019, section
    5.3.1).

    Words 2k log P (equal supports) to 2k(P-1) (disjoint), never more than n a message; log P
    messages. A sum turns dense when its two parts have together delta entries, delta = n * value
    bytes / (index + value bytes): n/2 for fp32. For any P: the ranks beyond the largest power of
    two first give theirs to a partner below it, and get the result last (2 messages more).

    A lossy format rounds the sum of a group of ranks once for each exchange; the loss goes to the
    group's first rank alone.
    """

    def reduce(self, own: Entries, k: int) -> SparseSum:  # noqa: ARG002 - all that was selected is sent
        rank, size = self.comm.rank, self.comm.size
        power = 1 << (size.bit_length() - 1)
        returned: list[Entries] = []
        with self.comm.traffic.labelled("sparse recursive_doubling"):
            if rank >= power:
                message, _ = self._encode(own, returned, keep_loss=True)
                send(self.comm, message, rank - power).wait()
                total = self._decode(receive(self.comm, rank - power))
            else:
                total = self._among_power(own, power, returned)
        if isinstance(total, Entries):
            return SparseSum(total, returned=returned)
        return SparseSum(None, total, returned)

    def _among_power(self, total: Vector, power: int, returned: list[Entries]) -> Vector:
        rank = self.comm.rank
        has_extra = rank + power < self.comm.size
        if has_extra:
            total = self._add(total, self._decode(receive(self.comm, rank + power)))
        distance = 1
        while distance < power:
            message, total = self._encode(total, returned, keep_loss=rank % distance == 0)
            request = send(self.comm, message, rank ^ distance)
            arrived = self._decode(receive(self.comm, rank ^ distance))
            request.wait()
            total = self._add(total, arrived) if rank & distance == 0 else self._add(arrived, total)
            distance *= 2
        if has_extra:
            send(self.comm, self._exact(total), rank + power).wait()
        return total

    def _encode(
        self, vector: Vector, returned: list[Entries], keep_loss: bool
    ) -> tuple[Array, Vector]:
        """The message, and the vector as its receiver sees it. A message of n words is dense: a
        sparse one must be smaller.
        """
        if isinstance(vector, Entries):
            encoded = self.entry_format.encode(vector)
            if encoded.message.size < self._dense_words():
                if keep_loss:
                    returned.append(encoded.lost)
                return encoded.message, encoded.sent
            vector = vector.dense(self.length)
        return vector.view(np.int32), vector

    def _exact(self, vector: Vector) -> Array:
        """The result for a rank that has no part in the exchanges: without loss, so that all ranks
        have the same.
        """
        if isinstance(vector, Entries):
            message = PlainFormat(self.settings.dtype).encode(vector).message
            # Marked by a first word that no format begins with: those are indices and sizes, >= 0.
            message = np.concatenate([np.array([-1], np.int32), message])
            if message.size < self._dense_words():
                return message
            vector = vector.dense(self.length)
        return vector.view(np.int32)

    def _decode(self, message: Array) -> Vector:
        if message.size == self._dense_words():
            return message.view(self.settings.dtype)
        if message.size and message[0] == -1:
            return PlainFormat(self.settings.dtype).decode(message[1:])
        return self.entry_format.decode(message)

    def _add(self, left: Vector, right: Vector) -> Vector:
        if isinstance(left, Entries) and isinstance(right, Entries):
            if left.size + right.size < self._delta():
                return merge(left, right)
            left = left.dense(self.length)
        if isinstance(left, Entries):
            left, right = right, left
        assert not isinstance(left, Entries)
        total = left.copy()
        if isinstance(right, Entries):
            total[right.indices] += right.values
        else:
            total += right
        return total

    def _dense_words(self) -> int:
        return self.length * np.dtype(self.settings.dtype).itemsize // 4

    def _delta(self) -> int:
        """The number of entries from which on dense is the smaller form."""
        value_bytes = np.dtype(self.settings.dtype).itemsize
        return -(-self.length * value_bytes // (4 + value_bytes))


def recursive_doubling_cost(size: ExchangeSize) -> ExchangeCost:
    """The sum over steps of what 2^s ranks together hold, in log P messages, two more when P is no
    power of two.
    """
    power = 1 << (size.ranks.bit_length() - 1)
    steps = [size.filled(1 << step) for step in range(power.bit_length() - 1)]
    folded = [] if power == size.ranks else [size.k, size.filled(size.ranks)]
    merged = sum(2 * entries for entries in steps)
    num_bytes = sum(size.message_bytes(entries) for entries in [*steps, *folded])
    return ExchangeCost(num_bytes, len(steps) + len(folded), merged, size.filled(size.ranks))
