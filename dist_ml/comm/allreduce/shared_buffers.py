"""The shared memory that one member of the family holds: what it allocated for its callers, and
what other tensors are copied into.
"""

import os
import platform
from types import ModuleType

import numpy as np
import torch

from dist_ml import compiled
from dist_ml.comm.allreduce import plain_loops
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import PeerMonitor
from dist_ml.comm.shared_buffer import SharedBuffer
from dist_ml.errors import MachineError

_STORES_IN_ORDER = ("x86_64", "amd64", "i386", "i686")
_SPINS = 20_000  # looks at a flag before the processor is offered to others: about 20 µs
_SPINS_CROWDED = (
    50  # where ranks outnumber cores, the rank that is waited for may need this one's core
)


class SharedBuffers:
    """All buffers of one algorithm over one `node`."""

    def __init__(self, node: Communicator) -> None:
        self._node = node
        self._allocated: list[SharedBuffer] = []
        self._staging: dict[np.dtype[np.generic], SharedBuffer] = {}

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """This rank's vector of n zeros in a new shared. Collective."""
        self._allocated.append(SharedBuffer(self._node, n, dtype))
        return self._allocated[-1].own

    def find(self, array: Array) -> tuple[SharedBuffer, int] | None:
        """The shared that `array` lies in and where it begins there."""
        for shared in self._allocated:
            offset = shared.offset_of(array)
            if offset is not None:
                return shared, offset
        return None

    def staging(self, array: Array) -> SharedBuffer:
        """An shared with room for a copy of `array`. Collective; nothing may be under way in it."""
        shared = self._staging.get(array.dtype)
        if shared is None or shared.n < array.size:
            if shared is not None:
                shared.free()
            shared = self._staging[array.dtype] = SharedBuffer(
                self._node, array.size, torch.from_numpy(array).dtype
            )
        return shared

    def free(self) -> None:
        """Give all of it back. Collective; tensors in it must not be touched any more."""
        for shared in [*self._allocated, *self._staging.values()]:
            shared.free()
        self._allocated, self._staging = [], {}


class FlagsReached:
    """Waits, as what `Request` calls a pending, until the flags of all ranks from `first` on are at
    `epoch`.
    """

    def __init__(
        self, loops: ModuleType, shared: SharedBuffer, first: int, epoch: int, spins: int
    ) -> None:
        self._loops = loops
        self._shared_buffer = shared
        self._wanted = first, shared.size, epoch
        self._spins = spins

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        return bool(self._loops.reached(self._shared_buffer.flags, *self._wanted, 0))

    def Wait(self) -> None:  # noqa: N802
        if self._loops.reached(self._shared_buffer.flags, *self._wanted, self._spins):
            return
        monitor = PeerMonitor(self._shared_buffer.peers)
        while not self._loops.reached(self._shared_buffer.flags, *self._wanted, self._spins):
            monitor.between_looks()


def choose_loops() -> ModuleType:
    """The compiled loops where numba is, else their plain reference; `MachineError` where a flag
    written by the plain ones could be seen before what it stands for.
    """
    if not compiled.available():
        if platform.machine().lower() not in _STORES_IN_ORDER:
            raise MachineError(
                f"reductions in shared memory need numba on {platform.machine()}, whose stores "
                "may become visible out of order; install numba, or use allreduce=ring"
            )
        return plain_loops
    from dist_ml.comm.allreduce import compiled_loops

    return compiled_loops


def choose_spins(num_ranks: int) -> int:
    """How often to look at a flag before offering the processor to somebody else."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return _SPINS if num_ranks <= cores else _SPINS_CROWDED
