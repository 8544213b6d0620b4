"""Initial weights as functions of a key and a position, so that any rank can make any part."""

import math
from typing import Any

import numpy as np
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
    share = share_of(layer.weight)
    region = None if share is None else share.region
    outputs, inputs = layer.weight.shape if share is None else share.shape
    bound = gain * math.sqrt(3 / inputs)
    fill_uniform(layer.weight.detach().numpy(), key, (outputs, inputs), bound, region)
    if layer.bias is not None:
        layer.bias.detach().zero_()
