"""The plain reference of the compiled passes: whole-vector torch operations, one after the
other.
"""

import math

import numpy as np
import torch
from numpy.typing import DTypeLike

from dist_ml.comm.buffer import Array


def accumulate(
    gradient: Array,
    scale: float,
    residual: Array,
    threshold: float,
    indices: Array,
    values: Array,
    offset: int,
) -> tuple[int, bool, bool]:
    bad = _add(_scaled(gradient, float(scale)), torch.from_numpy(residual))
    return (*sweep(residual, threshold, indices, values, offset)[:2], bad)


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
) -> tuple[int, bool, bool]:
    bad = _add(_scaled(gradient, float(scale)), torch.from_numpy(velocity), float(momentum))
    bad |= _add(torch.from_numpy(velocity), torch.from_numpy(residual))
    return (*sweep(residual, threshold, indices, values, offset)[:2], bad)


def sweep(
    residual: Array, threshold: float, indices: Array, values: Array, offset: int
) -> tuple[int, bool, bool]:
    total = torch.from_numpy(residual)
    hits = torch.logical_not(total.abs() < float(threshold)).nonzero().flatten().numpy()
    taken = hits[: indices.size]
    indices[: taken.size] = taken + offset
    values[: taken.size] = residual[taken]
    residual[taken] = 0
    return int(taken.size), bool(hits.size > taken.size), False


def _scaled(gradient: Array, scale: float) -> torch.Tensor:
    return torch.from_numpy(gradient) if scale == 1 else torch.from_numpy(gradient) * scale


def _add(addend: torch.Tensor, total: torch.Tensor, total_scale: float = 1.0) -> bool:
    """total = total_scale * total + addend where that is finite; is it not, somewhere?"""
    summed = (total if total_scale == 1 else total * total_scale) + addend
    if math.isfinite(float(summed.sum())):  # a single pass; what is finite may still overflow here
        total.copy_(summed)
        return False
    finite = torch.isfinite(summed)
    total.copy_(torch.where(finite, summed, total))
    return not bool(finite.all())


def add_at(residual: Array, indices: Array, values: Array) -> None:
    before = residual[indices]
    with np.errstate(invalid="ignore", over="ignore"):
        np.add.at(residual, indices, values)
        bad = np.flatnonzero(~np.isfinite(residual[indices]))
        residual[indices[bad]] = before[bad]
        for i in bad:  # one after the other, as indices may repeat
            total = residual[indices[i]] + values[i]
            if np.isfinite(total):
                residual[indices[i]] = total


def warm_up(dtype: DTypeLike) -> None:
    """Nothing is compiled."""
