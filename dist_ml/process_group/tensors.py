"""Torch's tensors as the communicator takes them: contiguous, of a dtype that it moves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dist_ml.errors import CommunicationError


def values(tensor: torch.Tensor) -> torch.Tensor:
    """Flat and contiguous, for reading: the tensor's own memory where it is so already."""
    if tensor.device.type != "cpu":
        raise CommunicationError(
            f"the tensor is on {tensor.device}, and only host memory is communicated; pass "
            "tensor.cpu(), or another backend for that device"
        )
    if tensor.layout is not torch.strided:
        raise CommunicationError(
            f"a tensor of layout {tensor.layout} can't be communicated; pass tensor.to_dense()"
        )
    flat = tensor.detach().resolve_conj().contiguous().view(-1)
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


@contextmanager
def written(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same, for writing: what is not contiguous gets what was written, at the end."""
    flat = values(tensor)
    yield flat
    if not tensor.is_contiguous():
        write_back(flat, tensor)


def write_back(flat: torch.Tensor, tensor: torch.Tensor) -> None:
    """The `values` of a tensor that is not contiguous, which are a copy, into the tensor."""
    back = torch.view_as_complex(flat.view(-1, 2)) if tensor.is_complex() else flat
    tensor.detach().copy_(back.view(tensor.shape))


def moved(flat: torch.Tensor) -> torch.Tensor:
    """For moving only: bytes, whatever the dtype."""
    return flat.view(torch.uint8)


def require_alike(collective: str, tensors: Sequence[torch.Tensor]) -> None:
    """`CommunicationError` for tensors of several dtypes, whose bytes would be taken for each
    other's.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise CommunicationError(
            f"{collective}: tensors of {' and '.join(sorted(map(str, dtypes)))}; pass one dtype"
        )
