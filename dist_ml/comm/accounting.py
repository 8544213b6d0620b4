"""What each call of a communicator checks and counts before anything moves."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from dist_ml.comm import traffic as words
from dist_ml.comm.buffer import Array, Buffer, Tensor, as_buffer
from dist_ml.comm.group import Group, expect
from dist_ml.comm.reduction import check_reducible, is_half
from dist_ml.comm.traffic import Words
from dist_ml.flight.recorder import Record

Op: TypeAlias = Literal["sum", "mean", "max", "min"]


class AccountedGroup(Group):
    """A group whose calls enter here: buffers are flat views that fit, the words are in the ledger,
    the call is in the flight recorder, and in checked mode the ranks agree on it.
    """

    def _enter_allreduce(self, buffer: Buffer, op: Op) -> Record:
        array, dtype = buffer
        if op != "sum" or dtype != "float32":  # what nearly all calls are needs no look
            check_reducible("allreduce", buffer, op)
        n, size = array.size, self.size
        if self._checker:
            self._checker.check(f"allreduce {op}", dtype, n, None)
        if size > 1:
            moved = words.allreduce_words(n, n // size + (self.rank < n % size), size)
            self.traffic.count(self.axis, "allreduce", moved, _reduced_bytes(buffer))
        return self.calls.collective("allreduce", dtype, n, op)

    def _enter_reduce_scatter(
        self, send: Tensor, receive: Tensor, op: Op, counts: Sequence[int] | None
    ) -> tuple[Buffer, Buffer, Sequence[int], Record]:
        source, target = as_buffer(send), as_buffer(receive)
        check_reducible("reduce_scatter", source, op)
        counts = self._shares(counts, source.array.size)
        expect("reduce_scatter", "send", source, sum(counts), source.dtype)
        expect("reduce_scatter", "receive", target, counts[self.rank], source.dtype)
        self._check(f"reduce_scatter {op}", source.dtype, source.array.size)
        moved = words.reduce_scatter_words(source.array.size, counts[self.rank], self.size)
        self._count("reduce_scatter", moved, _reduced_bytes(source))
        record = self.calls.collective("reduce_scatter", source.dtype, source.array.size, op)
        return source, target, counts, record

    def _enter_allgather(
        self, send: Tensor | None, receive: Tensor, counts: Sequence[int] | None
    ) -> tuple[Array | None, Array, Sequence[int], Record]:
        target = as_buffer(receive)
        counts = self._shares(counts, target.array.size)
        expect("allgather", "receive", target, sum(counts), target.dtype)
        source = as_buffer(send) if send is not None else None
        if source is not None:
            expect("allgather", "send", source, counts[self.rank], target.dtype)
        self._check("allgather", target.dtype, target.array.size)
        moved = words.allgather_words(target.array.size, counts[self.rank], self.size)
        self._count("allgather", moved, target.array.itemsize)
        record = self.calls.collective("allgather", target.dtype, target.array.size)
        return source.array if source is not None else None, target.array, counts, record

    def _enter_broadcast(self, x: Tensor, root: int) -> tuple[Array, Record]:
        buffer = as_buffer(x)
        self._check("broadcast", buffer.dtype, buffer.array.size, root)
        moved = words.broadcast_words(buffer.array.size, root, self.rank, self.size)
        self._count("broadcast", moved, buffer.array.itemsize)
        record = self.calls.collective("broadcast", buffer.dtype, buffer.array.size, root)
        return buffer.array, record

    def _enter_send(self, x: Tensor, destination: int, tag: int) -> tuple[Array, Record]:
        array, dtype = as_buffer(x)
        self._check_rank("destination", destination)
        if destination != self.rank:
            self.traffic.count(self.axis, "send", Words(array.size, 0, 1), array.itemsize)
        return array, self.calls.message("send", dtype, array.size, destination, tag)

    def _enter_receive(self, x: Tensor, source: int, tag: int) -> tuple[Array, Record]:
        array, dtype = as_buffer(x)
        self._check_rank("source", source)
        if source != self.rank:
            self.traffic.count(self.axis, "send", Words(0, array.size, 0), array.itemsize)
        return array, self.calls.message("receive", dtype, array.size, source, tag)


def _reduced_bytes(buffer: Buffer) -> int:
    """The bytes of a word on its way through a reduction, where half precision is widened."""
    return 4 if is_half(buffer) else buffer.array.itemsize
