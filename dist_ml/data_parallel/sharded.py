"""Sharded optimizer (ZeRO): each rank keeps the optimizer state, and in stage 2 the reduced
gradient, of 1/P of the parameters.

    reduce-scatter  gradients of all parameters -> the sum of this rank's shard   n(P-1)/P words
    update          this rank's shard of the parameters                           state and time 1/P
    allgather       the shards -> all parameters on all ranks                     n(P-1)/P words

together the words of one allreduce. Shards cut the flat vector of all parameters evenly, wherever a
parameter begins. Stage 1 keeps the whole local gradient in one buffer; stage 2 only ever has the
gradients of one bucket beside the shard: hooks reduce each bucket during the backward pass and drop
it.

Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC'20,
sections 5.1 and 5.2.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.buckets import choose_bytes, cut
from dist_ml.data_parallel.gradients import TAIL, FlatGradients
from dist_ml.partition import Range, block, blocks


class FlatParameters:
    """All parameters in one buffer, each parameter's data a view into it; `shard` is this rank's
    part as one parameter.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], comm: Communicator) -> None:
        self._comm = comm
        self._parameters = list(parameters)
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        self.range = block(self.flat.numel(), comm.size, comm.rank)
        start = 0
        for parameter in self._parameters:
            parameter.data = self.flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        self.shard = torch.nn.Parameter(self.flat[self.range.slice])

    def gather(self, *_: Any) -> None:
        """Every rank's updated shard to all ranks, in place. Takes what an optimizer's hook is
        given.
        """
        self._comm.allgather(None, self.flat)


class ShardedGradients(FlatGradients):
    """Stage 1: the whole local gradient in one buffer, and this rank's `shard` of the sum."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], comm: Communicator) -> None:
        super().__init__(parameters)
        self._comm = comm
        self.shard = torch.zeros(
            block(self.num_words, comm.size, comm.rank).size, dtype=self.buffer.dtype
        )

    def norm(self) -> float:
        """The norm of the whole reduced gradient. One allreduce of one word."""
        return _norm(self.shard, self._comm)

    def scale(self, factor: float) -> None:
        self.shard.mul_(factor)

    def reduce(self) -> None:
        self._comm.reduce_scatter(self.flat, self.shard)
        self._comm.allreduce(self.tail)


class TransientGradients:
    """Stage 2: no gradient outlives its bucket, but for this rank's `shard` of the sum. Stands in
    for `FlatGradients`.

    With several microbatches, gradients stay whole until the last one's backward pass.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        comm: Communicator,
        bucket_bytes: int | None = None,
    ) -> None:
        self._comm = comm
        self.parameters = list(parameters)
        dtype = self.parameters[0].dtype
        ends = torch.tensor([parameter.numel() for parameter in self.parameters]).cumsum(0).tolist()
        self.ranges = [
            Range(end - parameter.numel(), end)
            for end, parameter in zip(ends, self.parameters, strict=True)
        ]
        self.num_words = self.ranges[-1].stop
        self.tail = torch.zeros(len(TAIL), dtype=dtype)
        self.shard = torch.zeros(block(self.num_words, comm.size, comm.rank).size, dtype=dtype)
        words = choose_bytes(bucket_bytes, self.num_words * dtype.itemsize) // dtype.itemsize
        self.buckets = cut(self.ranges, self.num_words, max(1, words))
        self.largest_bucket_bytes = max(bucket.size for bucket in self.buckets) * dtype.itemsize
        self._members = [
            [
                index
                for index, part in enumerate(self.ranges)
                if bucket.start <= part.start < bucket.stop
            ]
            for bucket in self.buckets
        ]
        self._running = False
        self._next = 0
        self._ready: set[int] = set()
        for index, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._final(index))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Ready for the next step's sums."""
        self.tail.zero_()
        for parameter in self.parameters:
            parameter.grad = None

    def settle(self) -> None:
        """Nothing to do: what no backward pass has reached counts as zeros when its bucket is
        reduced.
        """

    def norm(self) -> float:
        """The norm of the whole reduced gradient. One allreduce of one word."""
        return _norm(self.shard, self._comm)

    def scale(self, factor: float) -> None:
        self.shard.mul_(factor)

    def start(self) -> None:
        """Gradients become final from here on."""
        self._running, self._next = True, 0
        self._ready = set()

    def reduce(self) -> None:
        """Reduce the buckets that the backward pass has left, and the tail."""
        self._running = False
        while self._next < len(self.buckets):
            self._reduce_bucket()
        self._comm.allreduce(self.tail)

    def _final(self, index: int) -> None:
        """Buckets are reduced in their order on all ranks, whatever order gradients become final
        in.
        """
        if not self._running:
            return
        self._ready.add(index)
        while self._next < len(self.buckets) and self._ready.issuperset(self._members[self._next]):
            self._reduce_bucket()

    def _reduce_bucket(self) -> None:
        bucket = self.buckets[self._next]
        gathered = torch.zeros(bucket.size, dtype=self.shard.dtype)
        for index in self._members[self._next]:
            parameter, part = self.parameters[index], self.ranges[index]
            if parameter.grad is not None:
                gathered[part.start - bucket.start : part.stop - bucket.start] = (
                    parameter.grad.reshape(-1)
                )
                parameter.grad = None
        shares = [bucket.intersect(owned) for owned in blocks(self.num_words, self._comm.size)]
        mine = shares[self._comm.rank]
        offset = block(self.num_words, self._comm.size, self._comm.rank).start
        target = (
            self.shard[mine.start - offset : mine.stop - offset] if mine.size else self.shard[:0]
        )
        self._comm.reduce_scatter(gathered, target, counts=[share.size for share in shares])
        self._next += 1


class ShardReducer:
    """The reducer of a sharded optimizer: has its gradients reduce themselves. Words: n(P-1)/P and
    two for the tail.
    """

    def __init__(self, gradients: ShardedGradients | TransientGradients) -> None:
        self._gradients = gradients

    def start(self) -> None:
        if isinstance(self._gradients, TransientGradients):
            self._gradients.start()

    def finish(self) -> None:
        self._gradients.reduce()

    def diagnostics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, f"a shard reducer has no state, but got {list(state)}"


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of an optimizer's state on this rank, scalars like step counters left out."""
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)


def _norm(shard: torch.Tensor, comm: Communicator) -> float:
    square = torch.linalg.vector_norm(shard).double().square().reshape(1)
    comm.allreduce(square)
    return math.sqrt(float(square)) if float(square) >= 0 else math.nan
