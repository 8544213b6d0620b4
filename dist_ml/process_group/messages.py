"""Messages between two ranks of a process group."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError
from dist_ml.process_group.tensors import moved, values
from dist_ml.process_group.work import MessageWork

Tensors = Sequence[torch.Tensor]


class Messages:
    """Those of a process group that has `comm`."""

    comm: Communicator

    def send(self, tensors: Tensors, destination: int, tag: int) -> dist.Work:
        (tensor,) = tensors
        return MessageWork(self.comm.isend(moved(values(tensor)), destination, tag), destination)

    def recv(self, tensors: Tensors, source: int, tag: int) -> dist.Work:
        (tensor,) = tensors
        flat = values(tensor)
        request = self.comm.ireceive(moved(flat), source, tag)
        if not tensor.is_contiguous():
            request.then(lambda: tensor.detach().copy_(flat.view(tensor.shape)))
        return MessageWork(request, source)

    def recv_anysource(self, tensors: Tensors, tag: int) -> dist.Work:
        raise CommunicationError(
            "a receive from any rank isn't built; say from which: dist.recv(tensor, src=…)"
        )
