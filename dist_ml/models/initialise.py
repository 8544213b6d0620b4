"""Initial weights as functions of a key and a position, so that any rank can make any part."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dist_ml.counter_random import uniform
from dist_ml.partition import pieces
from dist_ml.placement import Region, flat_positions, whole

_WEIGHTS_AT_ONCE = 1 << 16


def uniform_weight(
    key: int, shape: tuple[int, int], bound: float, region: Region | None = None
) -> NDArray[np.float64]:
    """The `region` (default: all) of a weight of the global `shape`, uniform in ± bound.

    Element j of the whole, row by row, is a function of (key, j): a region is a slice of it.
    """
    positions = flat_positions(whole(shape) if region is None else region, shape)
    flat = positions.reshape(-1)
    numbers = np.empty(flat.size)
    for part in pieces(flat.size, _WEIGHTS_AT_ONCE):
        drawn = uniform(key, flat[part.slice].astype(np.uint64))
        numbers[part.slice] = (2 * bound) * drawn - bound
    return numbers.reshape(positions.shape)


def initialise_linear(
    layer: nn.Linear, gain: float, key: int, region: Region | None = None
) -> None:
    """Zero bias, and weights uniform in ± gain sqrt(3 / inputs).

    `region`: which part of the weight [outputs, inputs] the layer holds, where it isn't the whole.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2, with the
    gain of each activation.
    """
    shape = (layer.out_features, layer.in_features)
    bound = gain * math.sqrt(3 / layer.in_features)
    weight = layer.weight.detach().numpy()
    weight[...] = uniform_weight(key, shape, bound, region)
    if layer.bias is not None:
        layer.bias.detach().zero_()
