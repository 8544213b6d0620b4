"""Torch tensors and numpy arrays as flat host buffers that MPI can move: the one place that a new
device would extend.

A buffer is a flat, contiguous numpy view of the caller's memory, never a copy of it, so that what
is received lands where the caller looks. bfloat16, which numpy doesn't have, is viewed as 2-byte
integers, and bool, which MPIs don't compare, as bytes of 0 and 1: they can be moved, and the dtype
gate of `Communicator` sees their real name before any reduction.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dist_ml.errors import CommunicationError

Array: TypeAlias = npt.NDArray[Any]
Tensor: TypeAlias = torch.Tensor | Array

_TORCH_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
_NUMPY_NAMES = frozenset(_TORCH_NAMES.values()) | {"uint16", "uint32", "uint64"}
_VIEWED_AS = {"bfloat16": torch.int16, "bool": torch.uint8}


class Buffer(NamedTuple):
    """A flat view of the caller's memory and the caller's name of its dtype."""

    array: Array
    dtype: str


def as_buffer(x: Tensor) -> Buffer:
    """The flat view of a contiguous tensor; `CommunicationError` for other devices, dtypes and
    layouts.
    """
    if isinstance(x, torch.Tensor):
        return _from_torch(x)
    if not isinstance(x, np.ndarray):
        raise CommunicationError(
            f"a {type(x).__name__} can't be communicated; pass a torch tensor or a numpy array"
        )
    if x.dtype.name not in _NUMPY_NAMES or not x.dtype.isnative:
        raise CommunicationError(
            f"dtype {x.dtype} can't be communicated; use one of {', '.join(sorted(_NUMPY_NAMES))}"
        )
    if not x.flags.c_contiguous:
        raise CommunicationError(
            _layout(x.shape, tuple(stride // x.itemsize for stride in x.strides))
        )
    flat = x.reshape(-1)
    return Buffer(flat.view(np.uint8) if x.dtype == np.bool_ else flat, x.dtype.name)


def is_contiguous(x: Tensor) -> bool:
    """False for tensors that need a contiguous copy; whatever `as_buffer` refuses anyway counts as
    contiguous, and so does what a result can't be copied back to.
    """
    if isinstance(x, torch.Tensor):
        return not is_strided(x) or x.is_contiguous() or overlaps(x)
    return not isinstance(x, np.ndarray) or bool(x.flags.c_contiguous)


def is_strided(x: torch.Tensor) -> bool:
    """Has it an element for each of its positions? Not so sparse tensors, nor nested ones."""
    return x.layout is torch.strided and not x.is_nested


def overlaps(x: torch.Tensor) -> bool:
    """Are several elements in one place, as `expand` leaves them?"""
    return any(stride == 0 and n > 1 for stride, n in zip(x.stride(), x.shape, strict=True))


def _from_torch(x: torch.Tensor) -> Buffer:
    if not is_strided(x):
        raise CommunicationError(
            f"a {'nested' if x.is_nested else x.layout} tensor can't be communicated; pass its "
            "values, or x.to_dense()"
        )
    dtype = _TORCH_NAMES.get(x.dtype)
    if dtype is None:
        raise CommunicationError(
            f"dtype {x.dtype} can't be communicated; use one of {', '.join(_TORCH_NAMES.values())}"
        )
    if x.device.type != "cpu":
        raise CommunicationError(
            f"the tensor lives on {x.device}, and only host memory is communicated; pass x.cpu()"
        )
    if not x.is_contiguous():
        raise CommunicationError(_layout(tuple(x.shape), x.stride()))
    if x.requires_grad:
        x = x.detach()
    if dtype in _VIEWED_AS:
        x = x.view(_VIEWED_AS[dtype])
    return Buffer(x.numpy().reshape(-1), dtype)


def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> str:
    return (
        f"a tensor of shape {shape} and strides {strides} is not contiguous; pass x.contiguous() "
        "and copy the result back"
    )
