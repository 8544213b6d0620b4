"""The shared memory that one member of the family holds: what it allocated for its callers, and
what it copies strangers into.
"""

import os
from types import ModuleType

import numpy as np
import torch

from dist_ml import compiled
from dist_ml.comm.allreduce import plain_loops
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.shared import SharedArena, Watch

_SPINS = 20_000  # looks at a flag before the processor is offered to others: about 20 µs
_SPINS_CROWDED = (
    50  # where ranks outnumber cores, the rank that is waited for may need this one's core
)


class Arenas:
    """All arenas of one algorithm over one `node`."""

    def __init__(self, node: Communicator) -> None:
        self._node = node
        self._allocated: list[SharedArena] = []
        self._staging: dict[np.dtype[np.generic], SharedArena] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """This rank's vector of n zeros in a new arena. Collective."""
        self._allocated.append(SharedArena(self._node, n, dtype))
        return self._allocated[-1].own

    def find(self, array: Array) -> tuple[SharedArena, int] | None:
        """The arena that `array` lies in and where it begins there."""
        for arena in self._allocated:
            offset = arena.offset_of(array)
            if offset is not None:
                return arena, offset
        return None

    def staging(self, array: Array) -> SharedArena:
        """An arena with room for a copy of `array`. Collective; nothing may be under way in it."""
        arena = self._staging.get(array.dtype)
        if arena is None or arena.n < array.size:
            if arena is not None:
                arena.free()
            arena = self._staging[array.dtype] = SharedArena(
                self._node, array.size, torch.from_numpy(array).dtype
            )
        return arena

    def free(self) -> None:
        """Give all of it back. Collective; tensors in it must not be touched any more."""
        for arena in [*self._allocated, *self._staging.values()]:
            arena.free()
        self._allocated, self._staging = [], {}


class FlagsReached:
    """Waits, as what `Request` calls a pending, until the flags of all ranks from `first` on are at
    `ticket`.
    """

    def __init__(
        self, loops: ModuleType, arena: SharedArena, first: int, ticket: int, spins: int
    ) -> None:
        self._loops = loops
        self._arena = arena
        self._wanted = first, arena.size, ticket
        self._spins = spins

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        return bool(self._loops.reached(self._arena.flags, *self._wanted, 0))

    def Wait(self) -> None:  # noqa: N802
        if self._loops.reached(self._arena.flags, *self._wanted, self._spins):
            return
        watch = Watch(self._arena.peers)
        while not self._loops.reached(self._arena.flags, *self._wanted, self._spins):
            watch.between_looks()


def choose_loops() -> ModuleType:
    """The compiled loops where numba is, else their plain reference."""
    if not compiled.available():
        return plain_loops
    from dist_ml.comm.allreduce import compiled_loops

    return compiled_loops


def choose_spins(num_ranks: int) -> int:
    """How often to look at a flag before offering the processor to somebody else."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return _SPINS if num_ranks <= cores else _SPINS_CROWDED
