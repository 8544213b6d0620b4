"""Tiles of C: a grid with larger blocks, each computed in tiles that fit, where that saves
words.
"""

from itertools import product

import numpy as np
import numpy.typing as npt

from dist_ml.gemm import bounds
from dist_ml.gemm.grid import ONE_TILE, Grid, Tiles, least_bytes, mean_words, most_words
from dist_ml.gemm.grids import MAX_IDLE, Grids, end_grids, grids_between
from dist_ml.gemm.product_shape import ProductShape

# A rank's block of C is computed in up to this many tiles along M and along N, where that saves at
# least a twentieth of the words: tiles make panels smaller and messages more.
MOST_TILES = 8
WORDS_FOR_TILES = 0.95
_CHUNK = 4096


def best_tiles(shape: ProductShape, grid: Grid, max_idle: float = MAX_IDLE) -> tuple[Grid, Tiles]:
    """A grid with the fewest words when tiles of C may follow one another; `grid`, and one tile,
    where that saves too little.

    With a small memory, C's block must be small, and few grids have that shape. Tiles give a block
    of any size one that fits. Grids are looked at from the lowest bound on their words, until that
    is above what has been found.
    """
    fewest, best = WORDS_FOR_TILES * int(most_words(shape, *grid)), (grid, ONE_TILE)
    if not shape.memory:
        return best
    if fewest <= bounds.limited_memory(*shape.sides, shape.ranks, shape.memory / shape.word_bytes):
        return best
    grids = grids_between(shape, end_grids(shape, max_idle), max_idle)
    low = _tiled_bound(shape, grids)
    order = np.argsort(low)
    for start in range(0, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        if low[chosen[0]] >= fewest:
            break
        found = grids.where(chosen)
        for tm, tn in product(range(1, MOST_TILES + 1), repeat=2):
            fits = least_bytes(shape, *found, 1, 1, tm, tn) <= shape.memory
            words = np.where(fits, most_words(shape, *found, tm, tn), np.iinfo(np.int64).max)
            at = int(words.argmin())
            if words[at] < fewest:
                fewest, best = (
                    int(words[at]),
                    (Grid(*(int(side[at]) for side in found)), Tiles(tm, tn)),
                )
    return best


def _tiled_bound(shape: ProductShape, grids: Grids) -> npt.NDArray[np.float64]:
    """What no tiling of a grid goes below: a partial tile of x by y words takes xy of memory: 1/x +
    1/y >= 2 / sqrt(memory).
    """
    assert shape.memory is not None
    m, n, k = (-(-size // sides) for size, sides in zip(shape.sides, grids, strict=True))
    partial = np.sqrt(max(1, shape.memory / shape.sum_bytes))
    foreign = 1 - 1 / np.minimum(grids.pm, grids.pn)
    tiled = np.where((grids.pk > 1) | shape.half, 2.0 * m * n * k / partial * foreign, 0.0)
    return np.asarray(np.maximum(tiled, mean_words(shape, *grids)), dtype=np.float64)
