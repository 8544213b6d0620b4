"""The textbook's words of layers that ranks share, for sizes that divide: a rank's, sent in the
forward and in the backward pass.

An even number of square layers of width m, b samples, whose first layer's inputs are on every rank
and have no gradient; biases left out. A product cut over a grid moves each operand along the side
that doesn't cut it: (s - 1) / P of it along a side of s ranks.
"""

from typing import NamedTuple

from dist_ml.operator_parallel.grid import Sides


class PassWords(NamedTuple):
    """Words that a rank sends in a pass over all layers."""

    forward: float
    backward: float


def textbook_words(layout: str, sides: Sides, num_layers: int, b: int, m: int) -> PassWords:
    """By Shoeybi et al. 2019, section 3 (1d) and Korthikanti et al. 2022, section 4.2 (1d_sharded);
    SUMMA's volumes on q x r ranks (2d) with the weights' sum over c copies (2.5d); Agarwal et al.
    1995 (3d).
    """
    copies, q, r, s = sides
    ranks = sides.num_ranks
    activations, weights, pairs = b * m / ranks, m * m / (ranks / copies), num_layers / 2
    if layout == "1d":
        allreduce = 2 * (ranks - 1) * activations
        return PassWords(pairs * allreduce, (pairs - 1) * allreduce)
    if layout == "1d_sharded":
        gather = (ranks - 1) * activations
        return PassWords((2 * pairs - 1) * gather, (2 * pairs - 1) * gather)
    if layout == "3d":
        each = pairs * (2 * (r - 1 + s - 1) * activations + 2 * (q - 1) * weights)
        return PassWords(each - (r - 1) * activations, each - (r - 1) * activations)
    x, w = (r - 1) * activations, (q - 1) * weights
    forward = pairs * (2 * x + 2 * w) - x
    summed = 2 * (copies - 1) / copies * num_layers * weights  # a weight gradient over the copies
    # of a pair: X again, dX, dY; and both layers' W again and dW. The first layer has X, and no dX
    backward = pairs * (3 * x + 4 * w) - 2 * x - w + summed
    return PassWords(forward, backward)


def crossover_batch(m: int, ranks: int) -> float:
    """The samples from which 2-D layers move fewer words than 1-D ones, of pairs of square layers
    of width m on a square grid, all gradients wanted: 6 m / (4 sqrt(P) - 1).
    """
    return float(6 * m / (4 * ranks**0.5 - 1))
