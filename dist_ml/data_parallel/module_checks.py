"""What must hold of a user's model before ranks train it together."""

import hashlib
from collections.abc import Sequence
from itertools import chain, zip_longest

import torch

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
    """`ConfigError` on all ranks unless all have the same parameters and buffers, in the same
    order: names, shapes, dtypes, and which are trained. Ranks compare a hash of these, and tell
    them in full only where hashes differ. The error names the first that differs, and on which
    ranks. Values aren't compared: rank 0's are given to all.
    """
    mine = _tensors_of(module)
    told = comm.allgather_objects(hashlib.blake2b("\n".join(mine).encode()).digest())
    if len(set(told)) == 1:
        return
    error = ConfigError(_first_difference(comm.allgather_objects(mine)))
    error.agreed = True
    raise error


def _tensors_of(module: torch.nn.Module) -> list[str]:
    """What the model has, in words; tied parameters once."""
    kinds = (("parameter", module.named_parameters()), ("buffer", module.named_buffers()))
    return [
        f"{kind} {name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        + ("" if tensor.requires_grad or kind == "buffer" else ", not trained")
        for kind, named in kinds
        for name, tensor in named
    ]


def _first_difference(models: Sequence[Sequence[str]]) -> str:
    """Of the ranks' models, where they first differ: what which ranks have there."""
    places = zip_longest(*models, fillvalue="nothing more")
    found = next(place for place in places if len(set(place)) > 1)
    who: dict[str, list[str]] = {}
    for rank, tensor in enumerate(found):
        who.setdefault(tensor, []).append(str(rank))
    parts = [
        f"{tensor} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"
        for tensor, ranks in who.items()
    ]
    return (
        f"the model is not the same on all ranks; first that differs: {'; '.join(parts)}. Build "
        "the same model on every rank (values may differ: rank 0's are taken)"
    )
