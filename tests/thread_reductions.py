"""Reductions between the threads of a group that go on while the ranks do something else."""

import threading

import numpy as np

from dist_ml.comm.buffer import Array
from tests.thread_messages import World

REDUCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class Reduction:
    """One reduction of a group: it completes when all ranks have begun it."""

    def __init__(self, world: World, size: int) -> None:
        self.world, self._size = world, size
        self._parts: dict[int, Array] = {}
        self._lock = threading.Lock()
        self.complete = threading.Event()

    def begin(self, rank: int, array: Array) -> None:
        with self._lock:
            self._parts[rank] = array.copy()
            if len(self._parts) == self._size:
                self.complete.set()

    def result(self, op: str) -> Array:
        found: Array = REDUCTIONS[op].reduce([self._parts[rank] for rank in range(self._size)])
        return found


class Reducing:
    """One rank's request for it."""

    def __init__(self, reduction: Reduction, array: Array, op: str) -> None:
        self._reduction, self._array, self._op = reduction, array, op

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        if not self._reduction.complete.is_set():
            return False
        self._array[...] = self._reduction.result(self._op)
        return True

    def Wait(self) -> None:  # noqa: N802
        self._reduction.world.wait(self._reduction.complete, "all ranks to begin a reduction")
        self.Test()


class Reductions:
    """Those of one group, by number: each rank begins them in the same order."""

    def __init__(self, world: World, size: int) -> None:
        self._world, self._size = world, size
        self._lock = threading.Lock()
        self._all: list[Reduction] = []
        self._begun = [0] * size

    def begin(self, rank: int, array: Array, op: str) -> Reducing:
        with self._lock:
            number = self._begun[rank]
            self._begun[rank] += 1
            if number == len(self._all):
                self._all.append(Reduction(self._world, self._size))
        reduction = self._all[number]
        reduction.begin(rank, array)
        return Reducing(reduction, array, op)
