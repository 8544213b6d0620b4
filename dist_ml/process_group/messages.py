"""Messages between two ranks of a process group."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.process_group.tensors import moved, values, write_back
from dist_ml.process_group.work import MessageWork, TimeLimit

Tensors = Sequence[torch.Tensor]


class Messages:
    """Those of a process group: all on one communicator, whichever threads send and receive."""

    _main: Communicator
    limit: TimeLimit

    def send(self, tensors: Tensors, destination: int, tag: int) -> dist.Work:
        (tensor,) = tensors
        request = self._main.isend(moved(values(tensor)), destination, tag)
        return MessageWork(request, lambda: destination, self.limit)

    def recv(self, tensors: Tensors, source: int, tag: int) -> dist.Work:
        (tensor,) = tensors
        flat = values(tensor)
        request = self._main.ireceive(moved(flat), source, tag)
        return MessageWork(_filling(request, tensor, flat), lambda: source, self.limit)

    def recv_anysource(self, tensors: Tensors, tag: int) -> dist.Work:
        (tensor,) = tensors
        flat = values(tensor)
        request, source = self._main.ireceive_any(moved(flat), tag)
        return MessageWork(_filling(request, tensor, flat), source, self.limit)


def _filling(request: Request, tensor: torch.Tensor, flat: torch.Tensor) -> Request:
    """`request`, which receives `flat`, the values of `tensor`: copied where they lie apart."""
    if tensor.is_contiguous():
        return request
    return request.then(lambda: write_back(flat, tensor))
