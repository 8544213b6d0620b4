"""The ranks of an operator axis that doesn't exist: layers are made and run as one of them would,
and what it would send is recorded instead.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from dist_ml.comm import traffic
from dist_ml.operator_parallel.grid import OperatorGrid, Place, Sides


class Collective(NamedTuple):
    """One collective of this rank. `num_bytes`: of the vector that is summed, or of the whole that
    is gathered or scattered.
    """

    kind: str  # allreduce, allgather, reduce_scatter
    ranks: int
    num_bytes: int
    words: int  # that this rank sends


class PlannedCommunicator:
    """Stands for a `Communicator` of `size` ranks where tensors have no data: every collective is
    added to `sent`, and does nothing.
    """

    def __init__(self, size: int, rank: int, sent: list[Collective]) -> None:
        self.size, self.rank, self.sent = size, rank, sent

    def allreduce(self, x: torch.Tensor, op: str = "sum") -> None:  # noqa: ARG002
        if self.size > 1:
            n = x.numel()
            own = n // self.size + (self.rank < n % self.size)
            self._add("allreduce", x, traffic.allreduce_words(n, own, self.size).sent)

    def allgather(
        self, x: torch.Tensor | None, result: torch.Tensor, counts: Sequence[int]
    ) -> None:
        del x
        self._add("allgather", result, counts[self.rank] * (self.size - 1))

    def reduce_scatter(self, x: torch.Tensor, result: torch.Tensor, counts: Sequence[int]) -> None:
        del result
        self._add("reduce_scatter", x, sum(counts) - counts[self.rank])

    def _add(self, kind: str, whole: torch.Tensor, words: int) -> None:
        num_bytes = whole.numel() * whole.element_size()
        self.sent.append(Collective(kind, self.size, num_bytes, words))


class PlannedGrid(OperatorGrid):
    """The place of `rank` on a grid of `sides`, whose collectives are added to `sent`."""

    def __init__(self, sides: Sides, rank: int = 0) -> None:
        Place.__init__(self, sides, rank)
        self.sent: list[Collective] = []
        self.comm: Any = PlannedCommunicator(sides.num_ranks, rank, self.sent)
        self.num_rows = 0

    def along(self, *sides: str) -> Any:
        wanted = self._cutting(sides)
        return PlannedCommunicator(self.size(*wanted), self.position(wanted), self.sent)


def words_of(sent: Iterable[Collective]) -> int:
    return sum(collective.words for collective in sent)
