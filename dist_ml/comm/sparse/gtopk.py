"""A tree that selects again at every merge, then a broadcast: the result never holds more than k
elements.
"""

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse.base import SparseSum, Stateless, receive, send
from dist_ml.comm.sparse.cost import SELECTING, ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries, largest
from dist_ml.comm.sparse.merge import merge


class GlobalTopk(Stateless):
    """Pairs of ranks merge and keep the k largest, log2 P times; rank 0 broadcasts (Shi et al.,
    ICDCS 2019, algorithm 2).

    At most 4k log P words and 2 log P messages pass over a rank's boundary. What a merge drops is
    returned to the rank that merged, which the paper leaves out: no part of the gradient is lost on
    the way up the tree. Any P.
    """

    def reduce(self, own: Entries, k: int) -> SparseSum:
        kept, dropped = largest(own, k)
        returned = [dropped]
        with self.comm.traffic.labelled("sparse gtopk"):
            message = self._up(kept, k, returned)
            message = self._down(message)
        return SparseSum(
            self.entry_format.decode(message) if message is not None else kept, returned=returned
        )

    def _up(self, kept: Entries, k: int, returned: list[Entries]) -> Array | None:
        """Merge along a binomial tree towards rank 0, whose message this returns there."""
        rank, size = self.comm.rank, self.comm.size
        distance = 1
        while distance < size:
            if rank & distance:
                encoded = self.entry_format.encode(kept)
                returned.append(encoded.lost)
                send(self.comm, encoded.message, rank - distance).wait()
                return None
            if rank + distance < size:
                arrived = self.entry_format.decode(receive(self.comm, rank + distance))
                kept, dropped = largest(merge(kept, arrived), k)
                returned.append(dropped)
            distance *= 2
        encoded = self.entry_format.encode(kept)
        returned.append(encoded.lost)
        return encoded.message

    def _down(self, message: Array | None) -> Array | None:
        """Broadcast rank 0's message along the same tree."""
        rank, size = self.comm.rank, self.comm.size
        distance = 1
        while distance < size and not rank & distance:
            distance *= 2
        if rank:
            message = receive(self.comm, rank - distance)
        assert message is not None
        requests = []
        while distance > 1:
            distance //= 2
            if rank + distance < size:
                requests.append(send(self.comm, message, rank + distance))
        for request in requests:
            request.wait()
        return message


def gtopk_cost(size: ExchangeSize) -> ExchangeCost:
    """4k log P words in 2 log P messages."""
    entries = (2 * size.k + SELECTING * size.filled(2)) * size.rounds
    return ExchangeCost(
        2 * size.k * size.entry_bytes * size.rounds, 2 * size.rounds, entries, size.k
    )
