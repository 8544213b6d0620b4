"""A user's model and optimizer in a checkpoint, and back, on any number of ranks.

    model/NAME              parameters and buffers, as the state dict names them
    optimizer/NAME/KEY      what the optimizer keeps of a parameter, in tensors

The optimizer's numbers (learning rates, betas) and what the script adds are in the header.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_ml.checkpoint import writer
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.reader import Checkpoint, newest
from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.errors import ConfigError, DataError
from dist_ml.placement import whole

MODEL, OPTIMIZER = "model", "optimizer"
_KEPT = frozenset({"kind", "names", "groups", "numbers"})  # of an optimizer, in the header


class Saved(NamedTuple):
    """What `load` found: the number of steps, and what the script saved beside."""

    step: int
    extra: dict[str, Any]


def save(
    folder: str | Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    mesh: Mesh | Communicator,
    extra: Mapping[str, Any] | None = None,
    keep_last: int = 2,
) -> Path:
    """Write `folder/step-N`, whole or not at all, and keep the `keep_last` newest; where it is.
    Collective.

    All ranks hold the same parameters and optimizer state (`DataParallel`) and share the writing;
    buffers are rank 0's. `extra`: what JSON takes. `ConfigError` on all ranks for what can't be
    saved, `DataError` where there is no room.
    """
    comm, module = _comm(mesh), _module(model)
    with raise_on_all_ranks(comm):
        if step < 0 or keep_last < 1:
            raise ConfigError(f"step={step} must be at least 0, and keep_last={keep_last} 1")
        parameters = dict(module.named_parameters(remove_duplicate=False))
        tensors = {
            f"{MODEL}/{name}": tensor
            for name, tensor in module.state_dict().items()
            if name in parameters or comm.rank == 0
        }
        kept, numbers = _optimizer_state(module, optimizer)
        header = {"extra": dict(extra or {}), OPTIMIZER: numbers}
        try:
            header = json.loads(json.dumps(header, default=lambda value: value.item()))
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"extra, or the optimizer, holds what JSON can't: {error}") from error
        pieces = [
            Piece(name, tuple(tensor.shape), whole(tensor.shape), tensor.detach())
            for name, tensor in {**tensors, **kept}.items()
        ]
    return writer.save(Path(folder).absolute(), step, pieces, header, comm, Keep(keep_last))


def load(
    folder: str | Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    mesh: Mesh | Communicator,
) -> Saved | None:
    """Fill model and optimizer from the newest sound checkpoint in `folder`, whatever number of
    ranks wrote it; None where there is none. Newer ones that are damaged are warned of, by rank 0.
    Collective.

    `DataError` on all ranks, before the model is changed, for another model's or optimizer's.
    """
    comm, module = _comm(mesh), _module(model)
    checkpoint = newest(Path(folder).absolute(), comm)
    if checkpoint is None:
        return None
    for path, problem in checkpoint.passed_over if comm.rank == 0 else ():
        warnings.warn(f"{path} is damaged ({problem}); {checkpoint.path} is loaded", stacklevel=2)
    with raise_on_all_ranks(comm):
        state = module.state_dict()
        _require_same(checkpoint, state)
        if optimizer is not None:
            _fill_optimizer(checkpoint, module, optimizer)
        for name, tensor in state.items():
            tensor.copy_(checkpoint.read(f"{MODEL}/{name}", whole(tensor.shape)))
    return Saved(checkpoint.step, checkpoint.header.get("extra", {}))


def _comm(mesh: Mesh | Communicator) -> Communicator:
    return mesh.world if isinstance(mesh, Mesh) else mesh


def _module(model: torch.nn.Module) -> torch.nn.Module:
    """What `DataParallel` wraps: names without its own."""
    from dist_ml.data_parallel.module import DataParallel

    return model.module if isinstance(model, DataParallel) else model


def _names(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the parameters, by the optimizer's own numbers of them."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter not in names for parameter in held):
        raise ConfigError(
            "the optimizer has a parameter that the model hasn't; hand in the model that it trains"
        )
    return [names[parameter] for parameter in held]


def _optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """What the optimizer keeps: tensors, and numbers."""
    if optimizer is None:
        return {}, None
    names, stored = _names(module, optimizer), optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, kept in stored["state"].items():
        for key, value in kept.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{OPTIMIZER}/{names[index]}/{key}"] = value
            else:
                numbers[f"{names[index]}/{key}"] = value
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in stored["param_groups"]
    ]
    kind = type(optimizer).__name__
    return tensors, {"kind": kind, "names": names, "groups": groups, "numbers": numbers}


def _fill_optimizer(
    checkpoint: Checkpoint, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    saved, names = checkpoint.header.get(OPTIMIZER), _names(module, optimizer)
    now, groups = optimizer.state_dict(), optimizer.param_groups
    kind = type(optimizer).__name__
    if not isinstance(saved, dict) or not _KEPT.issubset(saved):  # of a run, or of another program
        saved = None
    if saved is None or (saved["kind"], saved["names"]) != (kind, names):
        held = "no optimizer" if saved is None else f"a {saved['kind']}"
        raise DataError(
            f"{checkpoint.path} holds {held} of other parameters, or of another kind than this "
            f"{kind}; make the one that was saved, or load without it"
        )
    if len(saved["groups"]) != len(groups):
        raise DataError(
            f"{checkpoint.path} holds {len(saved['groups'])} parameter groups, and the optimizer "
            f"has {len(groups)}; make those that were saved"
        )
    state: dict[int, dict[str, Any]] = {index: {} for index in range(len(names))}
    numbers = {name: index for index, name in enumerate(names)}
    for path in checkpoint.names:
        if path.startswith(f"{OPTIMIZER}/"):
            name, _, key = path.removeprefix(f"{OPTIMIZER}/").rpartition("/")
            state[numbers[name]][key] = checkpoint.read(path, whole(checkpoint.shape(path)))
    for path, value in saved["numbers"].items():
        name, _, key = path.rpartition("/")
        state[numbers[name]][key] = value
    for there, here in zip(saved["groups"], now["param_groups"], strict=True):
        for key, value in there.items():  # JSON has no tuples
            here[key] = tuple(value) if isinstance(here.get(key), tuple) else value
    filled = {index: kept for index, kept in state.items() if kept}
    optimizer.load_state_dict({"state": filled, "param_groups": now["param_groups"]})


def _require_same(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
    there = {n.removeprefix(f"{MODEL}/") for n in checkpoint.names if n.startswith(f"{MODEL}/")}
    if different := sorted(there ^ set(state)):
        raise DataError(
            f"{checkpoint.path} was saved by another model: {different[0]} is in only one of the "
            "two; build the model that was saved"
        )
    for name, tensor in state.items():
        path = f"{MODEL}/{name}"
        saved, here = (checkpoint.shape(path), checkpoint.dtype(path)), tensor.dtype
        if saved != (tuple(tensor.shape), here):
            raise DataError(
                f"{checkpoint.path} was saved by another model: its {name} is {list(saved[0])} "
                f"{saved[1]}, but {list(tensor.shape)} {here} here; build the model that was saved"
            )
