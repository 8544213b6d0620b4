"""The one way to communicate: checked, counted, and the same on one rank or many."""

from collections.abc import Callable, Sequence
from time import monotonic_ns

import numpy as np
import torch

from dist_ml import partition
from dist_ml.comm import traffic as words
from dist_ml.comm.accounting import AccountedGroup
from dist_ml.comm.accounting import Op as Op
from dist_ml.comm.buffer import Array, Buffer, Tensor, as_buffer, is_contiguous
from dist_ml.comm.group import expect
from dist_ml.comm.reduction import is_half, narrow, widen
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words
from dist_ml.comm.transport import Staging
from dist_ml.errors import CommunicationError
from dist_ml.flight.recorder import ANY_PEER, COUNT, ENDED

# Half-precision buffers are widened this many elements at a time, so that a large one needs little
# extra memory.
HALF_PIECE = 1 << 20


class Communicator(AccountedGroup):
    """Collectives and messages between the ranks of one mesh axis.

    Takes torch tensors and numpy arrays in host memory. What is received is written into the
    caller's memory; tensors that are not contiguous are refused, except in place by the blocking
    `allreduce` and `broadcast`, which copy back. Empty tensors are fine, and so are counts above
    2^31. Every call is entered in `traffic` under `axis`, and recorded in `calls`. A call on a
    group of one moves nothing.

    bfloat16 and float16 are summed in float32 and rounded once, because a raw MPI sum of bfloat16
    returns garbage on Open MPI and aborts on MPICH.

    `staging`: what gathers and reduce-scatters of long equal parts go through in place of MPI,
    where all ranks are on one node (`node_staging.py`). All ranks set it at once; the setter frees
    it.
    """

    staging: Staging | None = None

    def allreduce(self, x: Tensor, op: Op = "sum") -> None:
        """Reduce `x` (same shape and dtype on all ranks) over the group, in place. Words: 2n(P-1)/P
        of the direct algorithm.
        """
        buffer = self._views.find(x)
        if buffer is None:
            if not is_contiguous(x):
                _in_contiguous(x, lambda dense: self.allreduce(dense, op))
                return
            buffer = self._views.make(x)
        record = self._enter_allreduce(buffer, op)
        if self.size == 1:
            return
        with self.traffic.timed(self.axis, "allreduce"):
            if is_half(buffer):
                self._allreduce_half(buffer, op)
            else:
                self.transport.allreduce(buffer.array, _mpi_op(op))
                if op == "mean":
                    self._divide(buffer.array, op)
        record[ENDED] = monotonic_ns()

    def iallreduce(self, x: Tensor, op: Op = "sum") -> Request:
        """`allreduce`, completed by the returned request; `x` belongs to it until then."""
        buffer = as_buffer(x)
        record = self._enter_allreduce(buffer, op)
        if self.size == 1:
            return Request()
        if not is_half(buffer):
            request = self.transport.iallreduce(buffer.array, _mpi_op(op))
            return request.then(lambda: self._divide(buffer.array, op)).recorded(record)
        wide = widen(buffer)
        request = self.transport.iallreduce(wide, _mpi_op(op))
        return request.then(lambda: narrow(self._divide(wide, op), buffer)).recorded(record)

    def reduce_scatter(
        self, send: Tensor, receive: Tensor, op: Op = "sum", counts: Sequence[int] | None = None
    ) -> None:
        """Reduce `send` (n elements) and leave rank r the r-th of `counts` consecutive elements in
        `receive`.

        `counts` default to the balanced block partition of n. Words sent: n - counts[rank].
        """
        source, target, counts, record = self._enter_reduce_scatter(send, receive, op, counts)
        if not is_half(source):
            with self.traffic.timed(self.axis, "reduce_scatter"):
                self._reduce_scatter(source.array, target.array, op, counts)
        else:
            wide = np.empty(target.array.size, dtype=np.float32)
            with self.traffic.timed(self.axis, "reduce_scatter"):
                self.transport.reduce_scatter(widen(source), wide, counts, _mpi_op(op))
            narrow(self._divide(wide, op), target)
        record[ENDED] = monotonic_ns()

    def ireduce_scatter(
        self, send: Tensor, receive: Tensor, op: Op = "sum", counts: Sequence[int] | None = None
    ) -> Request:
        """`reduce_scatter`, completed by the returned request."""
        source, target, counts, record = self._enter_reduce_scatter(send, receive, op, counts)
        if not is_half(source):
            request = self.transport.ireduce_scatter(
                source.array, target.array, counts, _mpi_op(op)
            )
            return request.then(lambda: self._divide(target.array, op)).recorded(record)
        wide = np.empty(target.array.size, dtype=np.float32)
        request = self.transport.ireduce_scatter(widen(source), wide, counts, _mpi_op(op))
        return request.then(lambda: narrow(self._divide(wide, op), target)).recorded(record)

    def allgather(
        self, send: Tensor | None, receive: Tensor, counts: Sequence[int] | None = None
    ) -> None:
        """Concatenate every rank's `send` (counts[rank] elements) into `receive` (n elements) on
        all ranks.

        `counts` default to the balanced block partition of n. `send=None` means that this rank's
        share is in its place in `receive` already. Words sent: counts[rank] (P-1).
        """
        source, target, counts, record = self._enter_allgather(send, receive, counts)
        with self.traffic.timed(self.axis, "allgather"):
            if self.staging is None or not self.staging.allgather(source, target, counts):
                self.transport.allgather(source, target, counts)
        record[ENDED] = monotonic_ns()

    def iallgather(
        self, send: Tensor | None, receive: Tensor, counts: Sequence[int] | None = None
    ) -> Request:
        """`allgather`, completed by the returned request."""
        source, target, counts, record = self._enter_allgather(send, receive, counts)
        return self.transport.iallgather(source, target, counts).recorded(record)

    def alltoall(
        self,
        send: Tensor,
        receive: Tensor,
        send_counts: Sequence[int],
        receive_counts: Sequence[int],
    ) -> None:
        """Send the i-th of `send_counts` consecutive elements to rank i, and receive likewise.

        What rank i sends to rank j must be what j expects from i: `exchange_counts` tells. Words
        sent: all but one's own.
        """
        source, target = as_buffer(send), as_buffer(receive)
        for name, buffer, counts in (
            ("send", source, send_counts),
            ("receive", target, receive_counts),
        ):
            if len(counts) != self.size:
                raise CommunicationError(
                    f"alltoall needs one of {name}_counts a rank: {self.size}, not {len(counts)}"
                )
            expect("alltoall", name, buffer, sum(counts), source.dtype)
        kept, expected = send_counts[self.rank], receive_counts[self.rank]
        if kept != expected:
            raise CommunicationError(
                f"alltoall: rank {self.rank} sends itself {kept} elements but expects {expected}"
            )
        self._check("alltoall", source.dtype)
        moved = words.alltoall_words(send_counts, receive_counts, self.rank)
        self._count("alltoall", moved, source.array.itemsize)
        record = self.calls.collective("alltoall", source.dtype, depth=2)
        with self.traffic.timed(self.axis, "alltoall"):
            self.transport.alltoall(source.array, target.array, send_counts, receive_counts)
        record[ENDED] = monotonic_ns()

    def exchange_counts(self, send_counts: Sequence[int]) -> list[int]:
        """How many elements each rank will send here, given how many go to each."""
        sent, received = np.array(send_counts, dtype=np.int64), np.empty(self.size, dtype=np.int64)
        self.alltoall(sent, received, [1] * self.size, [1] * self.size)
        return [int(count) for count in received]

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        """Overwrite `x` with the root's, on all ranks. Words: n (P-1) sent by the root, n received
        elsewhere.
        """
        if not is_contiguous(x):
            _in_contiguous(x, lambda dense: self.broadcast(dense, root))
            return
        array, record = self._enter_broadcast(x, root)
        with self.traffic.timed(self.axis, "broadcast"):
            self.transport.broadcast(array, root)
        record[ENDED] = monotonic_ns()

    def ibroadcast(self, x: Tensor, root: int = 0) -> Request:
        """`broadcast`, completed by the returned request."""
        array, record = self._enter_broadcast(x, root)
        return self.transport.ibroadcast(array, root).recorded(record)

    def send(self, x: Tensor, destination: int, tag: int = 0) -> None:
        """Send all of `x`; the receiver's tensor must have as many elements of the same dtype."""
        array, record = self._enter_send(x, destination, tag)
        with self.traffic.timed(self.axis, "send"):
            self.transport.send(array, destination, tag)
        record[ENDED] = monotonic_ns()

    def receive(self, x: Tensor, source: int, tag: int = 0) -> None:
        """Receive into all of `x`."""
        array, record = self._enter_receive(x, source, tag)
        with self.traffic.timed(self.axis, "send"):
            self.transport.receive(array, source, tag)
        record[ENDED] = monotonic_ns()

    def receive_message(self, dtype: str, source: int, tag: int = 0) -> Array:
        """All of the next message from `source`, whatever its size: a new flat array of `dtype`,
        which must be the sender's.
        """
        self._check_rank("source", source)
        record = self.calls.message("receive", dtype, None, source, tag, depth=2)
        with self.traffic.timed(self.axis, "send"):
            array = self.transport.receive_message(dtype, source, tag)
        record[COUNT], record[ENDED] = array.size, monotonic_ns()
        if source != self.rank:
            self.traffic.count(self.axis, "send", Words(0, array.size, 0), array.itemsize)
        return array

    def isend(self, x: Tensor, destination: int, tag: int = 0) -> Request:
        """`send`, completed by the returned request; `x` must stay unchanged until then."""
        array, record = self._enter_send(x, destination, tag)
        return self.transport.isend(array, destination, tag).recorded(record)

    def ireceive(self, x: Tensor, source: int, tag: int = 0) -> Request:
        """`receive`, completed by the returned request."""
        array, record = self._enter_receive(x, source, tag)
        return self.transport.ireceive(array, source, tag).recorded(record)

    def ireceive_any(self, x: Tensor, tag: int = 0) -> tuple[Request, Callable[[], int]]:
        """`ireceive` from whichever rank sends first; called after completion, the second value
        tells which.
        """
        array, dtype = as_buffer(x)
        self._count("send", Words(0, array.size, 0), array.itemsize)
        record = self.calls.message("receive", dtype, array.size, ANY_PEER, tag, depth=2)
        request, source = self.transport.ireceive_any(array, tag)
        return request.recorded(record), source

    def _reduce_scatter(self, source: Array, target: Array, op: Op, counts: Sequence[int]) -> None:
        divisor = self.size if op == "mean" else 1
        staging = self.staging if _mpi_op(op) == "sum" else None
        if staging is None or not staging.reduce_scatter(source, target, counts, divisor):
            self.transport.reduce_scatter(source, target, counts, _mpi_op(op))
            self._divide(target, op)

    def _allreduce_half(self, buffer: Buffer, op: Op) -> None:
        for piece in partition.pieces(buffer.array.size, HALF_PIECE):
            part = Buffer(buffer.array[piece.slice], buffer.dtype)
            wide = widen(part)
            self.transport.allreduce(wide, _mpi_op(op))
            narrow(self._divide(wide, op), part)

    def _divide(self, array: Array, op: Op) -> Array:
        if op == "mean":
            array /= self.size
        return array


def _mpi_op(op: Op) -> str:
    return "sum" if op == "mean" else op


def _in_contiguous(x: Tensor, call: Callable[[Tensor], None]) -> None:
    """Let `call` work in place on a contiguous copy of `x`, and copy the result back."""
    if isinstance(x, torch.Tensor):
        dense = x.detach().contiguous()
        call(dense)
        x.detach().copy_(dense)
    else:
        array = np.ascontiguousarray(x)
        call(array)
        x[...] = array
