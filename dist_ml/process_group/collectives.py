"""Collectives that move: gather, scatter, all-to-all, and reductions whose parts go apart."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.process_group.reductions import Reduction, reduction
from dist_ml.process_group.tensors import moved, require_alike, values, written
from dist_ml.process_group.work import done

Tensors = Sequence[torch.Tensor]


class Collectives:
    """Those of a process group that has `comm`, `stage` and `reduce_into`."""

    comm: Communicator
    stage: Callable[[int], None]
    reduce_into: Callable[[torch.Tensor, Reduction], None]

    def broadcast(self, tensors: Tensors, opts: Any) -> dist.Work:
        for tensor in tensors:
            with written(tensor) as flat:
                self.comm.broadcast(moved(flat), opts.rootRank)
        return done(list(tensors))

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> dist.Work:
        for parts, tensor in zip(outputs, inputs, strict=True):
            require_alike("all_gather", [*parts, tensor])
            rows = self._gathered(values(tensor), [part.numel() for part in parts])
            _put(rows, parts)
        return done(list(outputs))

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> dist.Work:
        """`outputs` are one list a rank."""
        for index, tensor in enumerate(inputs):
            parts = [rank[index] for rank in outputs]
            _put(self._gathered(values(tensor), [part.numel() for part in parts]), parts)
        return done(list(outputs))

    def all_gather_single(
        self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None
    ) -> dist.Work:
        require_alike("all_gather_single", [output, tensor])
        own = moved(values(tensor))
        with written(output) as flat:
            whole = moved(flat)
            place = whole[self.comm.rank * own.numel() :]
            in_place = place.data_ptr() == own.data_ptr()  # FSDP's parameters are
            counts = [own.numel()] * self.comm.size
            self.stage(whole.numel())
            self.comm.allgather(None if in_place else own, whole, counts)
        return done(output)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> dist.Work:
        for output, tensor in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, tensor)
        return done(list(outputs))

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> dist.Work:
        (tensor,) = inputs
        own = moved(values(tensor))
        sizes = [0] * self.comm.size
        sizes[opts.rootRank] = own.numel()
        root = self.comm.rank == opts.rootRank
        received = [own.numel() if root else 0] * self.comm.size
        everything = torch.empty(sum(received), dtype=torch.uint8)
        self.comm.alltoall(own, everything, sizes, received)
        if root:
            _put(everything.view(tensor.dtype), outputs[0])
        return done(list(outputs))

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> dist.Work:
        (output,) = outputs
        root = self.comm.rank == opts.rootRank
        parts = [moved(values(part)) for part in inputs[0]] if root else []
        send = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
        counts = [part.numel() for part in parts] or [0] * self.comm.size
        with written(output) as flat:
            target = moved(flat)
            received = [0] * self.comm.size
            received[opts.rootRank] = target.numel()
            self.comm.alltoall(send, target, counts, received)
        return done(list(outputs))

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> dist.Work:
        for output, parts in zip(outputs, inputs, strict=True):
            require_alike("reduce_scatter", [output, *parts])
            self._scattered(output, torch.cat([values(part) for part in parts]), opts)
        return done(list(outputs))

    def reduce_scatter_single(
        self, output: torch.Tensor, tensor: torch.Tensor, opts: Any
    ) -> dist.Work:
        require_alike("reduce_scatter_single", [output, tensor])
        self._scattered(output, values(tensor), opts)
        return done(output)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any
    ) -> dist.Work:
        for output, tensor in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, tensor, opts)
        return done(list(outputs))

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> dist.Work:
        require_alike("all_to_all", [*outputs, *inputs])
        sent = [moved(values(tensor)) for tensor in inputs]
        counts = [tensor.numel() * tensor.element_size() for tensor in outputs]
        received = torch.empty(sum(counts), dtype=torch.uint8)
        self.comm.alltoall(torch.cat(sent), received, [part.numel() for part in sent], counts)
        _put(received.view(outputs[0].dtype), outputs)
        return done(list(outputs))

    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_split_sizes: Sequence[int] | None,
        input_split_sizes: Sequence[int] | None,
        opts: Any = None,
    ) -> dist.Work:
        """Rows of the first dim, by the splits or in equal parts."""
        require_alike("all_to_all_single", [output, tensor])
        with written(output) as flat:
            self.comm.alltoall(
                moved(values(tensor)),
                moved(flat),
                _bytes(tensor, input_split_sizes, self.comm.size),
                _bytes(output, output_split_sizes, self.comm.size),
            )
        return done(output)

    def _gathered(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        rows = torch.empty(sum(counts), dtype=own.dtype)
        size = own.element_size()
        self.comm.allgather(moved(own), moved(rows), [size * count for count in counts])
        return rows

    def _scattered(self, output: torch.Tensor, flat: torch.Tensor, opts: Any) -> None:
        """This rank's part of the reduced `flat` into `output`."""
        how = reduction(opts.reduceOp, output.dtype)
        count = flat.numel() // self.comm.size
        if how.fold is not None:
            flat = flat.clone()
            self.reduce_into(flat, how)
            with written(output) as own:
                own.copy_(flat[self.comm.rank * count :][:count])
            return
        if how.factor is not None:
            flat = flat * how.factor
        elif flat.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
            flat = flat.clone()
        self.stage(flat.numel() * flat.element_size())
        with written(output) as own:
            self.comm.reduce_scatter(flat, own, how.op, [count] * self.comm.size)

    # as torch called them before 2.13
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


def _put(flat: torch.Tensor, parts: Tensors) -> None:
    """Consecutive values of `flat` into the tensors `parts`."""
    start = 0
    for part in parts:
        with written(part) as own:
            own.copy_(flat[start : start + own.numel()])
        start += own.numel()


def _bytes(tensor: torch.Tensor, splits: Sequence[int] | None, size: int) -> list[int]:
    total = tensor.numel() * tensor.element_size()
    if not splits:
        return [total // size] * size
    row = total // tensor.shape[0] if tensor.shape[0] else 0
    return [row * split for split in splits]
