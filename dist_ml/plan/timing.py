"""Seconds of a call, alone and between other work; collective, as all ranks of a node compute at
once. The slowest rank's count.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator

_ROUND_SECONDS = 2e-3
_ROUNDS = 5
_WORK_SIZE = 384  # of a product: half a millisecond between two exchanges
_MOST_CALLS = 40  # a round of exchanges
_EXCHANGE_SECONDS = 0.04


def slowest(comm: Communicator, call: Callable[[], object]) -> float:
    """Median seconds of a call, which communicates with nobody."""
    call()
    repeats = max(1, int(_ROUND_SECONDS / max(1e-7, _taken(call, 1))))
    return _most(comm, statistics.median(_taken(call, repeats) for _ in range(_ROUNDS)))


def between_work(
    comm: Communicator, exchange: Callable[[], object], works: Sequence[bool] = (True,)
) -> float:
    """What `exchange`, of all ranks of `comm`, adds to a loop that computes: with the wait for a
    core where ranks outnumber cores, and with the wake-up of those that waited; at least what it
    takes alone. `works`: whether rank r computes, again and again; else it only exchanges.
    """
    works_here = works[comm.rank % len(works)]
    a = torch.rand(_WORK_SIZE, _WORK_SIZE)
    out = torch.empty_like(a)

    def work() -> None:
        if works_here:
            torch.mm(a, a, out=out)

    def both() -> None:
        work()
        exchange()

    both()
    once = _most(comm, _taken(both, 2))
    repeats = max(3, min(_MOST_CALLS, int(_EXCHANGE_SECONDS / once)))
    found = []
    for _ in range(_ROUNDS):
        wait_for_all(comm)
        alone = _taken(work, repeats)
        wait_for_all(comm)
        found.append(_most(comm, _taken(both, repeats)) - _most(comm, alone))
    wait_for_all(comm)
    return max(_most(comm, _taken(exchange, repeats)), statistics.median(found))


def wait_for_all(comm: Communicator) -> None:
    """Without taking a core from those that still compute."""
    comm.iallreduce(np.zeros(1, np.int32)).wait()


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A call that is each of `calls` in turn, so that none finds in the cache what it uses."""
    turns = cycle(calls)
    return lambda: next(turns)()


def _taken(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _most(comm: Communicator, seconds: float) -> float:
    most = torch.tensor([seconds], dtype=torch.float64)
    comm.allreduce(most, "max")
    return most.item()
