"""What an exchange leaves behind: the gradient that the optimizer is about to use."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.partition import Range

# Ranges of the flat gradient that count in part only, since other ranks hold the same, each with
# the part that it counts for here.
Counted: TypeAlias = Sequence[tuple[Range, float]]


class ReducedGradients(ABC):
    """A step's reduced gradient and slots, on this rank.

    `is_agreed`: all ranks hold the same gradient, or parts of one, so that what they compute from
    its norm is the same on all of them without asking.
    """

    is_agreed = True

    def __init__(self, slots: torch.Tensor) -> None:
        self._slots: list[float] = slots.tolist()

    @property
    def slots(self) -> list[float]:
        """The sums; waits for those that are still under way."""
        return self._slots

    def ready(self) -> bool:
        """Whether slots and norm are there without waiting."""
        return True

    @abstractmethod
    def norm(self, counted: Counted = ()) -> float:
        """The Euclidean norm, each element counted once, but for what is `counted` in part; NaN or
        infinite if any element is.
        """

    def squares(self, counted: Counted = ()) -> list[float]:
        """What the square of the norm is the sum of, from first to last."""
        norm = self.norm(counted)
        return [norm * norm]

    @abstractmethod
    def scale(self, factor: float) -> None:
        """Multiply the gradient."""

    def roll_back(self) -> None:  # noqa: B027 - a dense exchange remembers nothing
        """The step will not be used: undo what the exchange has remembered of it."""


class Full(ReducedGradients):
    """Every rank holds the whole sum. `flat`: float [n]."""

    def __init__(self, flat: torch.Tensor, slots: torch.Tensor) -> None:
        super().__init__(slots)
        self._flat = flat

    def norm(self, counted: Counted = ()) -> float:
        whole = float(torch.linalg.vector_norm(self._flat))
        if not counted:
            return whole
        return root(whole**2 - _surplus(self._flat, Range(0, self._flat.numel()), counted))

    def scale(self, factor: float) -> None:
        self._flat.mul_(factor)


class Local(Full):
    """Each node, or rank, holds a sum of its own, and clips it by its own norm (local steps)."""

    is_agreed = False


class Sharded(ReducedGradients):
    """Each rank of `comm` holds one part of the sum, `own` of the flat gradient. The norm is one
    allreduce of one word.
    """

    def __init__(
        self, shard: torch.Tensor, own: Range, slots: torch.Tensor, comm: Communicator
    ) -> None:
        super().__init__(slots)
        self._shard, self._own = shard, own
        self._comm = comm

    def norm(self, counted: Counted = ()) -> float:
        square = torch.linalg.vector_norm(self._shard).double().square().reshape(1)
        square -= _surplus(self._shard, self._own, counted)
        self._comm.allreduce(square)
        return root(float(square))

    def scale(self, factor: float) -> None:
        self._shard.mul_(factor)


def root(square: float) -> float:
    """The norm of this square; NaN where that isn't a sum of squares."""
    return math.sqrt(square) if square >= 0 else math.nan


def _surplus(held: torch.Tensor, own: Range, counted: Counted) -> float:
    """Of the squared norm of `held`, the range `own` of the flat gradient, what doesn't count."""
    total = 0.0
    for part, count in counted:
        both = own.intersect(part)
        values = held[both.start - own.start : both.stop - own.start]
        total += (1 - count) * float(torch.linalg.vector_norm(values)) ** 2
    return total
