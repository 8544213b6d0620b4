"""Initial weights as functions of a key and a position, so that any rank can make any part."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_ml.counter_random import uniform
from dist_ml.partition import Range, pieces
from dist_ml.placement import Region, flat_positions, share_of, whole

_WEIGHTS_AT_ONCE = 1 << 16


def fill_uniform(
    weight: NDArray[np.floating[Any]],
    key: int,
    shape: tuple[int, int],
    bound: float,
    region: Region | None = None,
) -> None:
    """Fill `weight` with the `region` (default: all) of a weight of the global `shape`, uniform in
    ± bound.

    Element j of the whole, row by row, is a function of (key, j): a region is a slice of it. Drawn
    in float64, then rounded; a few rows at a time, so that memory is bounded.
    """
    rows, columns = whole(shape) if region is None else region
    assert weight.shape == (rows.size, columns.size), (weight.shape, rows, columns)
    for part in pieces(rows.size, max(1, _WEIGHTS_AT_ONCE // max(1, columns.size))):
        drawn_rows = Range(rows.start + part.start, rows.start + part.stop)
        drawn = uniform(key, flat_positions((drawn_rows, columns), shape))
        weight[part.slice] = (2 * bound) * drawn - bound


def initialise_linear(layer: nn.Linear, gain: float, key: int) -> None:
    """Zero bias, and weights uniform in ± gain sqrt(3 / inputs); this rank's
    part, where it holds one.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2, with the
    gain of each activation.
    """
    _, inputs = _global_shape(layer.weight)
    _fill(layer.weight, gain * math.sqrt(3 / inputs), key)
    if layer.bias is not None:
        layer.bias.detach().zero_()


def initialise_convolution(layer: nn.Conv2d, gain: float, key: int) -> None:
    """Weights [out, in, height, width] uniform in ± gain sqrt(3 / (in height width)), as a linear
    layer's of so many inputs; zero bias, where there is one.
    """
    share = share_of(layer.weight)
    outputs, inputs, height, width = layer.weight.shape if share is None else share.shape
    size, region = height * width, None
    if share is not None:
        rows, columns = share.region[:2]
        region = rows, Range(columns.start * size, columns.stop * size)
    held = layer.weight.detach()
    weight = held.view(len(held), math.prod(held.shape[1:])).numpy()
    bound = gain * math.sqrt(3 / (inputs * size))
    fill_uniform(weight, key, (outputs, inputs * size), bound, region)
    if layer.bias is not None:
        layer.bias.detach().zero_()


def initialise_norm(layer: nn.GroupNorm) -> None:
    """Scales of one, shifts of zero: no channel is preferred."""
    layer.weight.detach().fill_(1)
    layer.bias.detach().zero_()


def initialise_embedding(layer: nn.Embedding, key: int) -> None:
    """Vectors whose squared length is 1 on average, each number uniform; this rank's part, where it
    holds one. So a head of the same weights begins with outputs of variance 1.
    """
    _, width = _global_shape(layer.weight)
    _fill(layer.weight, math.sqrt(3 / width), key)


def _global_shape(weight: torch.Tensor) -> tuple[int, int]:
    share = share_of(weight)
    rows, columns = weight.shape if share is None else share.shape
    return rows, columns


def _fill(weight: torch.Tensor, bound: float, key: int) -> None:
    share = share_of(weight)
    region = None if share is None else share.region
    fill_uniform(weight.detach().numpy(), key, _global_shape(weight), bound, region)
