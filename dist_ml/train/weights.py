"""Trained weights as one file: a plain state dict in safetensors form."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from dist_ml.errors import DataError


def save_weights(state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a state dict to `file`, whole or not at all; `DataError` where it can't be. A weight
    with two names is written under both, since a plain state dict has both.
    """
    unfinished = file.with_suffix(".part")
    try:
        safetensors.torch.save_file(_apart(state), unfinished)
        unfinished.replace(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(
            f"the weights can't be saved in {file.parent}: {error}; make room there"
        ) from error


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, no two of them in the same memory: safetensors refuses those."""
    seen: set[tuple[int, int]] = set()
    apart = {}
    for name, tensor in state.items():
        place = tensor.data_ptr(), tensor.numel()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def load_weights(model: torch.nn.Module, file: Path) -> None:
    """Fill the model with saved weights; `DataError` where the file is missing, holds another
    model's, or weights that are not finite.
    """
    try:
        weights = safetensors.torch.load_file(file)
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise DataError(
            f"{file} does not exist: the run has not finished; train it to its end first"
        ) from None
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{file} does not hold the weights of this run's model ({reason}); was it changed?"
        ) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"{file}: {name} holds NaN or infinity, so nothing can be computed with it; use a "
                "run that ended well"
            )
