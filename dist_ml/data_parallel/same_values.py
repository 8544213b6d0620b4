"""The same values of tensors on all ranks."""

from collections.abc import Iterable

import torch

from dist_ml.comm.communicator import Communicator


def equalise(tensors: Iterable[torch.Tensor], comm: Communicator, root: int = 0) -> None:
    """Give all ranks the values of `root`, in place: those of one dtype in one message. Words: all
    elements, from `root` to each.
    """
    if comm.size == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
    for alike in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        comm.broadcast(flat, root)
        parts = torch.split(flat, [tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
