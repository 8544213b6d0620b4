"""Reduce-scatter with re-selection in log P messages, then an allgather: the words of Ok-Topk at a
tree's latency.
"""

from typing import Any

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.base import (
    Settings,
    SparseSum,
    Stateless,
    allgather_regions,
    receive,
    send,
)
from dist_ml.comm.sparse.cost import SELECTING, ExchangeCost, ExchangeSize
from dist_ml.comm.sparse.entries import Entries, concatenate, largest
from dist_ml.comm.sparse.merge import merge
from dist_ml.comm.sparse.regions import BalancedRegions


class Spardl(Stateless):
    """Each region keeps its k/P largest at every merge, so that nothing fills in (SparDL, Zhao et
    al., ICDE 2024, section III).

    Bruck's reduce-scatter for any P: rank r's region at distance j belongs to rank r + j. With d =
    the largest power of two below P, then d/2, … 1: send the regions at distances d … 2d-1 in one
    message to rank r + d, which is d nearer to their owners. At most 2k(P-1)/P words in ceil(log2
    P) messages, and the same words in one allgather. What a merge drops is returned to the rank
    that merged. Regions are balanced as in Ok-Topk; the paper's are equal.
    """

    def __init__(self, comm: Communicator, length: int, settings: Settings | None = None) -> None:
        super().__init__(comm, length, settings)
        self._regions = BalancedRegions(comm, length, self.settings.repartition_steps)

    def reduce(self, own: Entries, k: int) -> SparseSum:
        if self.comm.size == 1:
            return SparseSum(own)
        returned: list[Entries] = []
        with self.comm.traffic.labelled("sparse spardl control"):
            self._regions.renew(own)
        with self.comm.traffic.labelled("sparse spardl"):
            region = self._reduce_scatter(own, -(-k // self.comm.size), returned)
            total, lost = allgather_regions(self.comm, self.entry_format, region)
        return SparseSum(total, returned=[*returned, lost])

    def _reduce_scatter(self, own: Entries, room: int, returned: list[Entries]) -> Entries:
        rank, size = self.comm.rank, self.comm.size
        regions = [
            self._select(piece, room, returned) for piece in own.cut(self._regions.boundaries)
        ]
        distance = 1 << ((size - 1).bit_length() - 1)
        while distance:
            moved = sorted((rank + j) % size for j in range(distance, min(2 * distance, size)))
            encoded = self.entry_format.encode(concatenate([regions[owner] for owner in moved]))
            returned.append(encoded.lost)
            request = send(self.comm, encoded.message, (rank + distance) % size)
            arrived = self.entry_format.decode(receive(self.comm, (rank - distance) % size)).cut(
                self._regions.boundaries
            )
            for j in range(min(2 * distance, size) - distance):
                owner = (rank + j) % size
                regions[owner] = self._select(merge(regions[owner], arrived[owner]), room, returned)
            request.wait()
            distance //= 2
        return regions[rank]

    def _select(self, region: Entries, room: int, returned: list[Entries]) -> Entries:
        kept, dropped = largest(region, room)
        if dropped.size:
            returned.append(dropped)
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {"regions": self._regions.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._regions.load_state_dict(state["regions"])


def spardl_cost(size: ExchangeSize) -> ExchangeCost:
    """4k(P-1)/P words in log P messages and an allgather."""
    entries = 2 * size.k * size.share + SELECTING * size.k * (0.5 + 2 * size.share)
    return ExchangeCost(
        2 * size.k * size.entry_bytes * size.share, size.rounds + size.gathering, entries, size.k
    )
