"""Whole selections that anybody could write with PyTorch or NumPy, which ours are compared with.

Each adds the gradient to the residual, finds the k entries that are largest in magnitude, takes
them out of the residual and returns (indices, values).
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from dist_ml.comm.buffer import Array

Selected: TypeAlias = tuple[Array, Array]
Baseline: TypeAlias = Callable[[Array, Array, int], Selected]
_SAMPLED = 0.01  # share of the elements whose magnitudes tell the threshold (DGC, ICLR 2018)


def torch_topk(residual: Array, gradient: Array, k: int) -> Selected:
    """`torch.topk`, unsorted, its quickest form."""
    values = torch.from_numpy(residual).add_(torch.from_numpy(gradient))
    indices = torch.topk(values.abs(), k, sorted=False).indices
    return _take(values, indices)


def torch_kthvalue(residual: Array, gradient: Array, k: int) -> Selected:
    """The threshold by `torch.kthvalue`."""
    values = torch.from_numpy(residual).add_(torch.from_numpy(gradient))
    magnitudes = values.abs()
    threshold = torch.kthvalue(magnitudes, magnitudes.numel() - k + 1).values
    return _take(values, torch.nonzero(magnitudes >= threshold).flatten())


def np_partition(residual: Array, gradient: Array, k: int) -> Selected:
    """The threshold by `np.partition`."""
    residual += gradient
    magnitudes = np.abs(residual)
    threshold = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
    indices = np.flatnonzero(magnitudes >= threshold)
    values = residual[indices]
    residual[indices] = 0
    return indices, values


def sampled_topk(residual: Array, gradient: Array, k: int) -> Selected:
    """The threshold by `torch.topk` of every hundredth element; about k entries."""
    values = torch.from_numpy(residual).add_(torch.from_numpy(gradient))
    magnitudes = values.abs()
    sample = magnitudes[:: max(1, round(1 / _SAMPLED))]
    share = max(1, round(k / magnitudes.numel() * sample.numel()))
    threshold = torch.topk(sample, share, sorted=False).values.min()
    return _take(values, torch.nonzero(magnitudes >= threshold).flatten())


def _take(values: torch.Tensor, indices: torch.Tensor) -> Selected:
    taken = values[indices]
    values[indices] = 0.0
    return indices.numpy(), taken.numpy()


EXACT: dict[str, Baseline] = {
    "torch.topk": torch_topk,
    "torch.kthvalue": torch_kthvalue,
    "np.partition": np_partition,
}
BASELINES: dict[str, Baseline] = {**EXACT, "sampled torch.topk": sampled_topk}
