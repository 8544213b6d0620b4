"""What must hold of a user's model before ranks train it together."""

from itertools import chain
from typing import Any

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.buffer import is_strided, overlaps
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError

GRADIENT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_exchangeable(module: torch.nn.Module) -> None:
    """`ConfigError` for what can't be exchanged."""
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"the model is of type {type(module).__name__}; it must be a torch.nn.Module"
        )
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        _require_memory(name, tensor)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"{type(module).__name__} has no parameter that is trained (requires_grad); wrap a "
            "model that has, or use it as it is"
        )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype not in GRADIENT_DTYPES:
            raise ConfigError(
                f"{name} is {parameter.dtype}, whose gradients can't be summed; one of "
                f"{', '.join(map(str, GRADIENT_DTYPES))} can"
            )


def _require_memory(name: str, tensor: torch.Tensor) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        raise ConfigError(
            f"{name} has no shape yet: let a batch pass through the model before it is wrapped"
        )
    if tensor.device.type != "cpu":
        raise ConfigError(
            f"{name} is on {tensor.device}, but MPI takes tensors in the host's memory here: "
            "move the model with .to('cpu') before wrapping it"
        )
    if not is_strided(tensor) or overlaps(tensor):
        raise ConfigError(
            f"{name} is sparse, nested or expanded, with no place of its own for each element; "
            "make it dense (.to_dense(), .clone())"
        )


def require_alike(module: torch.nn.Module, comm: Communicator) -> None:
    """`ConfigError` on all ranks, naming the first difference to rank 0's model."""
    mine = [
        (name, tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
    ]
    theirs = comm.broadcast_object(mine)
    with raise_on_all_ranks(comm):
        if mine != theirs:
            differ = (pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1])
            here, there = next(differ, (f"{len(mine)} tensors", f"{len(theirs)} tensors"))
            raise ConfigError(
                f"the model differs from rank 0's: {_describe(here)} here, {_describe(there)} "
                "there; build the same model on every rank"
            )


def _describe(tensor: Any) -> str:
    if isinstance(tensor, str):
        return tensor
    name, shape, dtype, trained = tensor
    return f"{name} {list(shape)} {dtype}{'' if trained else ', not trained'}"
