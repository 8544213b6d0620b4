"""Memory that all ranks of a node see: an MPI shared window, cut into one copy of a vector for each
rank, and flags to wait by.

    flags   one line a rank: how many reductions it has arrived at
            one line a rank: how many of them it has finished
    copies  rank 0's n elements | rank 1's n elements | ...    on whole pages, each near its rank

The memory has no name once it is mapped, so nothing of it stays when ranks are killed.
"""

import os

import numpy as np
import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError, MachineError

LINE_BYTES = 64
PAGE_BYTES = 4096
_SHARED_FOLDER = "/dev/shm"
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class SharedBuffer:
    """One vector of n elements a rank of `node`, all of them visible to all ranks. Collective.

    `own` is this rank's (zeros at first); `copies` is [size, stride], row r rank r's, and `rows`
    their numbers. `free` when no tensor of it is in use any more. `MachineError`, on all ranks,
    when the node has less shared memory than that needs.
    """

    def __init__(self, node: Communicator, n: int, dtype: torch.dtype) -> None:
        if dtype not in _DTYPES:
            raise CommunicationError(
                f"shared memory reduces float32 and float64, not {dtype}; use allreduce=native"
            )
        self.n = n
        self.size = node.size
        self.rows = tuple(range(node.size))
        item_bytes = np.dtype(_DTYPES[dtype]).itemsize
        row_bytes = _round_up(max(1, n) * item_bytes, PAGE_BYTES)
        flag_bytes = _round_up(2 * node.size * LINE_BYTES, PAGE_BYTES)
        needed = flag_bytes + node.size * row_bytes + PAGE_BYTES
        _check_room(node, needed)
        self._memory = node.transport.allocate_shared(needed)
        start = -self._memory.array.ctypes.data % PAGE_BYTES
        self.flags = self._memory.array[start : start + flag_bytes].view(np.int64)
        rows = self._memory.array[start + flag_bytes : start + flag_bytes + node.size * row_bytes]
        self.copies: Array = rows.view(_DTYPES[dtype]).reshape(node.size, -1)
        self.own = torch.from_numpy(self.copies[node.rank, :n])
        self.own.zero_()
        if node.rank == 0:
            self.flags.fill(0)
        self.peers = node.transport.peers
        self._epochs = 0
        node.barrier()

    def next_epoch(self) -> int:
        """The number of the next reduction in this buffer, from 1: what the flags count. All ranks
        take them in the same order.
        """
        self._epochs += 1
        return self._epochs

    def offset_of(self, array: Array) -> int | None:
        """The first element of `own` that `array` covers; None where it lies elsewhere or reaches
        beyond.
        """
        if array.dtype != self.copies.dtype:
            return None
        start, odd = divmod(array.ctypes.data - self.own.data_ptr(), array.itemsize)
        return start if odd == 0 and start >= 0 and start + array.size <= self.n else None

    def free(self) -> None:
        """Give the memory back. Collective; tensors that lie in it must not be touched any more."""
        self._memory.free()


def free_bytes() -> int:
    """What this node's shared memory still has room for."""
    try:
        room = os.statvfs(_SHARED_FOLDER)
    except OSError:
        return 2**63 - 1  # no such folder: what limits it can't be told beforehand
    return room.f_bavail * room.f_frsize


def _check_room(node: Communicator, needed: int) -> None:
    with raise_on_all_ranks(node):
        room = free_bytes()
        if node.rank == 0 and needed > room:
            raise MachineError(
                f"allreduce in shared memory needs {_mib(needed)} in {_SHARED_FOLDER} for "
                f"{node.size} ranks, but only "
                f"{_mib(room)} are free there; enlarge it (mount -o remount,size=…, docker "
                "--shm-size=…), or use allreduce=ring"
            )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
