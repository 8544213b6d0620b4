"""Memory of a node that MPI shares among the ranks of a group."""

import atexit
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.script_end import mark_ended


class SharedWindow:
    """An MPI shared window: the first rank's memory, mapped by all ranks of a group on one node.
    Collective, and so is `free`.
    """

    def __init__(self, mpi: Any, comm: Any, num_bytes: int) -> None:
        self._window = mpi.Win.Allocate_shared(
            num_bytes if comm.Get_rank() == 0 else 0, 1, comm=comm
        )
        memory, _ = self._window.Shared_query(0)
        self.array: Array = np.frombuffer(memory, dtype=np.uint8)
        # MPICH can't finalise over some networks while one exists
        atexit.register(self._free_at_exit)

    def free(self) -> None:
        atexit.unregister(self._free_at_exit)
        if self._window is not None:
            self._window.Free()

    def give_up(self) -> None:
        """It can't be freed any more, since a rank of the group has died: MPI keeps the memory
        until this process ends.
        """
        atexit.unregister(self._free_at_exit)
        self._window = None

    def _free_at_exit(self) -> None:
        mark_ended()  # the others may be elsewhere, and this waits for them
        self.free()
