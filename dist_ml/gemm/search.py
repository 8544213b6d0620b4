"""The best grid of ranks: fewest words for the most loaded rank, among all integer grids, within
the memory limit.

COSMA (SC 2019, sections 6.3 and 7.1) approaches the ideal block (MNK/P)^(1/3) and leaves at most 3
% of the ranks idle. Here every grid of the same kind is looked at.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dist_ml.gemm.grid import Grid, least_bytes, mean_words, most_words, partial_bytes
from dist_ml.gemm.grids import MAX_IDLE, Grids, end_grids, grids_between
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.steps import too_little_memory

Fits: TypeAlias = Callable[[Grids], npt.NDArray[np.bool_]]

# Narrow panels make a local product slow, and one panel at a time can't hide its gathering. Under a
# memory limit the first (width, panels in flight) is taken whose best grid moves at most
# WORDS_FOR_SPEED times the words of the last one's.
PANELS = ((32, 2), (8, 2), (1, 1))
WORDS_FOR_SPEED = 1.02


def best_grid(shape: ProductShape, max_idle: float = MAX_IDLE) -> Grid:
    """The grid with the fewest words received by its most loaded rank, of all integer grids that
    fit.

    At most `max_idle` of the ranks stay idle (all of them count where the sizes are too small to
    use more). `ConfigError` names the least memory where the limit rules out every grid.
    """
    ends = end_grids(shape, max_idle)
    grids = [
        _search(shape, max_idle, ends, _fits(shape, width, buffers)) for width, buffers in PANELS
    ]
    if grids[-1] is None:
        raise too_little_memory(shape, int(np.min(least_bytes(shape, *ends))))
    limit = WORDS_FOR_SPEED * most_words(shape, *grids[-1])
    return next(grid for grid in grids if grid is not None and most_words(shape, *grid) <= limit)


def _search(shape: ProductShape, max_idle: float, ends: Grids, fits: Fits) -> Grid | None:
    grids = ends.where(fits(ends))
    if not grids.pm.size:
        return None
    fewest = float(most_words(shape, *grids).min())
    inner = grids_between(shape, grids.where(mean_words(shape, *grids) < fewest), max_idle)
    grids = grids.with_more(inner.where(fits(inner)))
    words = most_words(shape, *grids)
    best = grids.where(np.flatnonzero(words == words.min()))
    # Of equals: most ranks at work, least memory, squarest.
    order = np.lexsort(
        (
            np.abs(np.log(best.pm / best.pn)),
            partial_bytes(shape, *best),
            -best.pm * best.pn * best.pk,
        )
    )
    return Grid(*(int(side[order[0]]) for side in best))


def _fits(shape: ProductShape, width: int, buffers: int) -> Fits:
    def fits(grids: Grids) -> npt.NDArray[np.bool_]:
        if shape.memory is None:
            return np.ones(grids.pm.shape, dtype=np.bool_)
        return np.asarray(
            least_bytes(shape, *grids, width, buffers) <= shape.memory, dtype=np.bool_
        )

    return fits
