"""Ranks with different numbers of batches: before each exchange they tell each other what follows,
so that one that has run out takes part with zeros until all have.

    rank 0   exchange 0   exchange 1   exchange 2   none left
    rank 1   exchange 0   none left    zeros        none left, as all: it ends

Words: an allreduce of three integers before each exchange.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError


class Exchange(IntEnum):
    """What ranks that still have batches do next."""

    NONE = 0  # there are no such ranks
    BUFFERS = 1  # at the beginning of a forward pass
    GRADIENTS = 2  # at the first gradient of a backward pass


class Announced(NamedTuple):
    exchange: Exchange
    first: int  # the lowest rank that still has batches; meaningless at NONE


class Join:
    """What the ranks of `comm` tell each other. `update` is what each does after an exchange of
    gradients.
    """

    def __init__(self, comm: Communicator, update: Callable[[], object]) -> None:
        self._comm = comm
        self.update = update

    def announce(self, exchange: Exchange) -> Announced:
        """This rank makes `exchange` next; NONE: it has run out. Collective; `CommunicationError`
        on all ranks where two make different ones.
        """
        size, rank, has_more = self._comm.size, self._comm.rank, exchange is not Exchange.NONE
        least = -int(exchange) if has_more else -len(Exchange)
        told = torch.tensor([int(exchange), least, size - rank if has_more else 0])
        self._comm.allreduce(told, "max")
        most, least, first = told.tolist()
        if most and most != -least:
            error = CommunicationError(
                f"in join(), some ranks exchange {Exchange(most).name.lower()} next and others "
                f"{Exchange(-least).name.lower()}; every pass must be one forward and one backward "
                "pass on every rank that has batches"
            )
            error.agreed = True
            raise error
        return Announced(Exchange(most), size - first)
