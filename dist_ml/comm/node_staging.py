"""Collectives among the ranks of one node, of vectors in ordinary memory: through a little memory
that all ranks see, a chunk at a time, so that a chunk is still in the cache when others read it.

What the vectors themselves move to and from memory is then all: an allreduce reads and writes each
element once, as one of vectors in shared memory does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dist_ml import compiled
from dist_ml.comm.allreduce.shared_buffers import choose_spins
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import PeerMonitor
from dist_ml.comm.shared_buffer import SharedBuffer

CHUNK_BYTES = 1 << 19  # two of them a rank: caches have room for those of several ranks
LEAST_BYTES = 1 << 16  # of a rank's part: shorter ones are for MPI
_REDUCED = (np.float32, np.float64)


class NodeStaging:
    """For all ranks of `comm`, which are on one node; needs numba. Collective.

    All calls return when this rank's part is over; `PeerLostError` where another rank has died.
    Memory: 1 MB a rank.
    """

    def __init__(self, comm: Communicator) -> None:
        from dist_ml.comm import node_staging_loops  # which imports numba

        self._loops = node_staging_loops
        self._rank, self._size = comm.rank, comm.size
        self._spins = choose_spins(comm.size)
        self._shared = SharedBuffer(comm, 2 * CHUNK_BYTES // 4, torch.float32)
        self._chunks = 1  # the number of the next one, over all calls

    def allreduce(self, x: Array, divisor: int = 1) -> None:
        """Sum over the ranks, divided, in place; float32 or float64, the same bits on all ranks."""
        place = self._copies(x), self._shared.rows, self._shared.flags, self._rank
        self._run(
            self._loops.allreduce,
            -(-x.nbytes // CHUNK_BYTES),
            (x, *place),
            (x.dtype.type(divisor),),
        )

    def allgather(self, send: Array | None, receive: Array, counts: Sequence[int]) -> bool:
        """`Communicator.allgather`, where parts are equal and long; else false, nothing done."""
        part = receive.nbytes // self._size
        if part < LEAST_BYTES or len(set(counts)) > 1:
            return False
        whole = receive.view(np.uint8)
        if send is not None:
            whole[self._rank * part : (self._rank + 1) * part] = send.view(np.uint8)
        place = self._copies(whole), self._shared.flags, self._rank
        self._run(self._loops.allgather, -(-part // CHUNK_BYTES), (whole, *place), ())
        return True

    def reduce_scatter(
        self, send: Array, receive: Array, counts: Sequence[int], divisor: int = 1
    ) -> bool:
        """`Communicator.reduce_scatter`, the sum divided, where parts are equal and long; else
        false, nothing done.
        """
        if receive.nbytes < LEAST_BYTES or len(set(counts)) > 1 or send.dtype not in _REDUCED:
            return False
        words = CHUNK_BYTES // send.itemsize // self._size
        place = self._copies(send), self._shared.flags, self._rank
        self._run(
            self._loops.reduce_scatter,
            -(-receive.size // words),
            (send, receive, *place),
            (send.dtype.type(divisor),),
        )
        return True

    def free(self) -> None:
        """Give the memory back. Collective."""
        self._shared.free()

    def _copies(self, like: Array) -> Array:
        copies: Array = self._shared.copies.view(like.dtype)
        return copies

    def _run(
        self, loop: Callable[..., bool], chunks: int, before: Sequence[Any], after: Sequence[Any]
    ) -> None:
        """The loop, until it is over."""
        progress, first = np.zeros(3, np.int64), self._chunks
        self._chunks += chunks
        arguments = progress, *before, first, *after, self._spins
        if loop(*arguments):
            return
        monitor = PeerMonitor(self._shared.peers)
        while not loop(*arguments):
            monitor.between_looks()


def node_staging(comm: Communicator) -> NodeStaging | None:
    """One for `comm`; None where its ranks are on several nodes, or numba is missing.
    Collective.
    """
    node = comm.split_by_node()
    size = node.size
    node.free()
    usable = compiled.available() and size == comm.size > 1
    return NodeStaging(comm) if all(comm.allgather_objects(usable)) else None
