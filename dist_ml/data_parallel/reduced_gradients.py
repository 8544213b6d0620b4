"""What an exchange leaves behind: the gradient that the optimizer is about to use."""

import math
from abc import ABC, abstractmethod

import torch

from dist_ml.comm.communicator import Communicator


class ReducedGradients(ABC):
    """A step's reduced gradient and slots, on this rank.

    `is_agreed`: all ranks hold the same gradient, or parts of one, so that what they compute from
    its norm is the same on all of them without asking.
    """

    is_agreed = True

    def __init__(self, slots: torch.Tensor) -> None:
        self.slots: list[float] = slots.tolist()

    @abstractmethod
    def norm(self) -> float:
        """The Euclidean norm, each element counted once; NaN or infinite if any element is."""

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

    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self._flat))

    def scale(self, factor: float) -> None:
        self._flat.mul_(factor)


class Local(Full):
    """Each node, or rank, holds a sum of its own, and clips it by its own norm (local steps)."""

    is_agreed = False


class Sharded(ReducedGradients):
    """Each rank of `comm` holds one part of the sum. The norm is one allreduce of one word."""

    def __init__(self, shard: torch.Tensor, slots: torch.Tensor, comm: Communicator) -> None:
        super().__init__(slots)
        self._shard = shard
        self._comm = comm

    def norm(self) -> float:
        square = torch.linalg.vector_norm(self._shard).double().square().reshape(1)
        self._comm.allreduce(square)
        return math.sqrt(float(square)) if float(square) >= 0 else math.nan

    def scale(self, factor: float) -> None:
        self._shard.mul_(factor)
