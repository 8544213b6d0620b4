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

from collections.abc import Iterable

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.bucket_scheduler import BucketScheduler
from dist_ml.data_parallel.buckets import choose_bytes, cut
from dist_ml.data_parallel.drivers import InlineDriver
from dist_ml.data_parallel.gradients import FlatGradients, call_when_final, places
from dist_ml.data_parallel.reduced_gradients import Sharded
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.partition import block, blocks


class Zero1Reducer(GradientReducer):
    """The whole local gradient in one buffer, and this rank's `shard` of the sum.

    Words: n(P-1)/P and the slots'.
    """

    def __init__(self, gradients: FlatGradients, comm: Communicator) -> None:
        self._gradients = gradients
        self._comm = comm
        self.slots = gradients.slots
        self._own = block(gradients.num_words, comm.size, comm.rank)
        self.shard = torch.zeros(self._own.size, dtype=gradients.buffer.dtype)

    def begin(self) -> None:
        self._gradients.begin()

    def finish(self) -> Sharded:
        self._gradients.complete()
        self._comm.reduce_scatter(self._gradients.flat, self.shard)
        self._comm.allreduce(self.slots)
        return Sharded(self.shard, self._own, self.slots, self._comm)


class Zero2Reducer(GradientReducer):
    """No gradient outlives its bucket, but for this rank's `shard` of the sum.

    With several micro-batches, gradients stay whole until the last one's backward pass.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        num_slots: int,
        comm: Communicator,
        bucket_bytes: int | None = None,
    ) -> None:
        self._comm = comm
        self._parameters = list(parameters)
        dtype = self._parameters[0].dtype
        self._ranges = places(self._parameters)
        self._num_words = self._ranges[-1].stop
        self.slots = torch.zeros(num_slots, dtype=dtype)
        self._own = block(self._num_words, comm.size, comm.rank)
        self.shard = torch.zeros(self._own.size, dtype=dtype)
        words = choose_bytes(bucket_bytes, self._num_words * dtype.itemsize) // dtype.itemsize
        self.buckets = cut(self._ranges, self._num_words, max(1, words))
        self.largest_bucket_bytes = max(bucket.size for bucket in self.buckets) * dtype.itemsize
        self._members = [
            [i for i, part in enumerate(self._ranges) if bucket.start <= part.start < bucket.stop]
            for bucket in self.buckets
        ]
        driver = InlineDriver(self._reduce_bucket)
        self._scheduler = BucketScheduler(self._ranges, self.buckets, driver)
        call_when_final(self._parameters, self._scheduler.ready)

    def begin(self) -> None:
        self.slots.zero_()
        for parameter in self._parameters:
            parameter.grad = None

    def start(self) -> None:
        self._scheduler.begin()

    def finish(self) -> Sharded:
        self._scheduler.finish()
        self._comm.allreduce(self.slots)
        return Sharded(self.shard, self._own, self.slots, self._comm)

    def _reduce_bucket(self, number: int) -> None:
        """Sum one bucket into the shards that it overlaps; a missing gradient counts as zeros."""
        bucket = self.buckets[number]
        gathered = torch.zeros(bucket.size, dtype=self.shard.dtype)
        for index in self._members[number]:
            parameter, part = self._parameters[index], self._ranges[index]
            if parameter.grad is not None:
                place = slice(part.start - bucket.start, part.stop - bucket.start)
                gathered[place] = parameter.grad.reshape(-1)
                parameter.grad = None
        shares = [bucket.intersect(owned) for owned in blocks(self._num_words, self._comm.size)]
        mine = shares[self._comm.rank]
        start = mine.start - self._own.start
        target = self.shard[start : start + mine.size] if mine.size else self.shard[:0]
        self._comm.reduce_scatter(gathered, target, counts=[share.size for share in shares])


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of an optimizer's state on this rank, scalars like step counters left out."""
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
