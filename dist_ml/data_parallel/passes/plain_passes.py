"""The plain twins of the compiled passes: whole-vector torch operations, one after the other."""

import numpy as np
import torch
from numpy.typing import DTypeLike

from dist_ml.comm.buffer import Array


def accumulate(
    gradient: Array, scale: float, residual: Array, threshold: float, indices: Array, values: Array, offset: int
) -> tuple[int, bool]:
    torch.from_numpy(residual).add_(torch.from_numpy(gradient) * float(scale))
    return sweep(residual, threshold, indices, values, offset)


def accumulate_momentum(
    gradient: Array,
    scale: float,
    velocity: Array,
    momentum: float,
    residual: Array,
    threshold: float,
    indices: Array,
    values: Array,
    offset: int,
) -> tuple[int, bool]:
    torch.from_numpy(velocity).mul_(float(momentum)).add_(torch.from_numpy(gradient) * float(scale))
    torch.from_numpy(residual).add_(torch.from_numpy(velocity))
    return sweep(residual, threshold, indices, values, offset)


def sweep(residual: Array, threshold: float, indices: Array, values: Array, offset: int) -> tuple[int, bool]:
    total = torch.from_numpy(residual)
    hits = torch.logical_not(total.abs() < float(threshold)).nonzero().flatten().numpy()
    taken = hits[: indices.size]
    indices[: taken.size] = taken + offset
    values[: taken.size] = residual[taken]
    residual[taken] = 0
    return int(taken.size), bool(hits.size > taken.size)


def add_at(residual: Array, indices: Array, values: Array) -> None:
    np.add.at(residual, indices, values)


def warm_up(dtype: DTypeLike) -> None:
    """Nothing is compiled."""
