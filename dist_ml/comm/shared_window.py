"""Memory of a node that MPI shares among the ranks of a group."""

import atexit
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array


class SharedWindow:
    """An MPI shared window: the first rank's memory, mapped by all ranks of a group on one node.
    Collective.
    """

    def __init__(self, mpi: Any, comm: Any, num_bytes: int) -> None:
        self._window = mpi.Win.Allocate_shared(
            num_bytes if comm.Get_rank() == 0 else 0, 1, comm=comm
        )
        memory, _ = self._window.Shared_query(0)
        self.array: Array = np.frombuffer(memory, dtype=np.uint8)
        atexit.register(self.free)  # MPICH can't finalise over some networks while one exists

    def free(self) -> None:
        atexit.unregister(self.free)
        self._window.Free()
