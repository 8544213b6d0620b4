"""The best grid of ranks: fewest words for the most loaded rank, among all integer grids, within
the memory limit.

COSMA (SC 2019, sections 6.3 and 7.1) approaches the ideal block (MNK/P)^(1/3) and leaves at most 3
% of the ranks idle. Here every grid of the same kind is looked at: for fixed (pm, pn) the mean
words are monotone in pk, so the two ends bound all between them, and 100,000 ranks take a tenth of
a second.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dist_ml.errors import ConfigError
from dist_ml.gemm import bounds
from dist_ml.gemm.grid import (
    ONE_TILE,
    Grid,
    Problem,
    Tiles,
    least_bytes,
    mean_words,
    most_words,
    partial_bytes,
)

Ints: TypeAlias = npt.NDArray[np.int64]
Fits: TypeAlias = Callable[["Grids"], npt.NDArray[np.bool_]]

# At most this share of the ranks may stay idle when that saves words; more would cost more time
# computing than it saves.
MAX_IDLE = 0.03

# Narrow panels make a local product slow, and one panel at a time can't hide its gathering. Under a
# memory limit the first (width, panels in flight) is taken whose best grid moves at most
# WORDS_FOR_SPEED times the words of the last one's.
PANELS = ((32, 2), (8, 2), (1, 1))
WORDS_FOR_SPEED = 1.02


# A rank's block of C is computed in up to this many tiles along M and along N, where that saves at
# least a twentieth of the words: tiles make panels smaller and messages more.
MOST_TILES = 8
WORDS_FOR_TILES = 0.95
_CHUNK = 4096


class Grids(NamedTuple):
    """Many grids: one array a side."""

    pm: Ints
    pn: Ints
    pk: Ints

    def where(self, mask: npt.NDArray[np.bool_] | Ints) -> "Grids":
        return Grids(self.pm[mask], self.pn[mask], self.pk[mask])

    def with_more(self, other: "Grids") -> "Grids":
        return Grids(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def best_grid(problem: Problem, max_idle: float = MAX_IDLE) -> Grid:
    """The grid with the fewest words received by its most loaded rank, of all integer grids that
    fit.

    At most `max_idle` of the ranks stay idle (all of them count where the sizes are too small to
    use more). `ConfigError` names the least memory where the limit rules out every grid.
    """
    ends = _ends(problem, max_idle)
    grids = [
        _search(problem, max_idle, ends, _fits(problem, width, buffers))
        for width, buffers in PANELS
    ]
    if grids[-1] is None:
        raise too_little_memory(problem, int(np.min(least_bytes(problem, *ends))))
    limit = WORDS_FOR_SPEED * most_words(problem, *grids[-1])
    return next(grid for grid in grids if grid is not None and most_words(problem, *grid) <= limit)


def best_tiles(problem: Problem, grid: Grid, max_idle: float = MAX_IDLE) -> tuple[Grid, Tiles]:
    """A grid with the fewest words when tiles of C may follow one another; `grid`, and one tile,
    where that saves too little.

    With a small memory, C's block must be small, and few grids have that shape. Tiles give a block
    of any size one that fits. Grids are looked at from the lowest bound on their words, until that
    is above what has been found.
    """
    fewest, best = WORDS_FOR_TILES * int(most_words(problem, *grid)), (grid, ONE_TILE)
    if not problem.memory:
        return best
    if fewest <= bounds.limited_memory(
        *problem.sides, problem.ranks, problem.memory / problem.word_bytes
    ):
        return best
    grids = _between(problem, _ends(problem, max_idle), max_idle)
    low = _tiled_bound(problem, grids)
    order = np.argsort(low)
    for start in range(0, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        if low[chosen[0]] >= fewest:
            break
        found = grids.where(chosen)
        for tm, tn in product(range(1, MOST_TILES + 1), repeat=2):
            fits = least_bytes(problem, *found, 1, 1, tm, tn) <= problem.memory
            words = np.where(fits, most_words(problem, *found, tm, tn), np.iinfo(np.int64).max)
            at = int(words.argmin())
            if words[at] < fewest:
                fewest, best = (
                    int(words[at]),
                    (Grid(*(int(side[at]) for side in found)), Tiles(tm, tn)),
                )
    return best


def _tiled_bound(problem: Problem, grids: Grids) -> npt.NDArray[np.float64]:
    """What no tiling of a grid goes below: a partial tile of x by y words takes xy of memory: 1/x +
    1/y >= 2 / sqrt(memory).
    """
    assert problem.memory is not None
    m, n, k = (-(-size // sides) for size, sides in zip(problem.sides, grids, strict=True))
    partial = np.sqrt(max(1, problem.memory / problem.sum_bytes))
    foreign = 1 - 1 / np.minimum(grids.pm, grids.pn)
    tiled = np.where((grids.pk > 1) | problem.half, 2 * m * n * k / partial * foreign, 0.0)
    return np.asarray(np.maximum(tiled, mean_words(problem, *grids)), dtype=np.float64)


def too_little_memory(problem: Problem, least: int) -> ConfigError:
    return ConfigError(
        f"memory={problem.memory} bytes a rank is too little for {problem.m} x {problem.n} x "
        f"{problem.k} on {problem.ranks} "
        f"ranks: the least is {least} bytes besides the shards; give that much, or more ranks"
    )


def _search(problem: Problem, max_idle: float, ends: Grids, fits: Fits) -> Grid | None:
    grids = ends.where(fits(ends))
    if not grids.pm.size:
        return None
    fewest = float(most_words(problem, *grids).min())
    inner = _between(problem, grids.where(mean_words(problem, *grids) < fewest), max_idle)
    grids = grids.with_more(inner.where(fits(inner)))
    words = most_words(problem, *grids)
    best = grids.where(np.flatnonzero(words == words.min()))
    # Of equals: most ranks at work, least memory, squarest.
    order = np.lexsort(
        (
            np.abs(np.log(best.pm / best.pn)),
            partial_bytes(problem, *best),
            -best.pm * best.pn * best.pk,
        )
    )
    return Grid(*(int(side[order[0]]) for side in best))


def _fits(problem: Problem, width: int, buffers: int) -> Fits:
    def fits(grids: Grids) -> npt.NDArray[np.bool_]:
        if problem.memory is None:
            return np.ones(grids.pm.shape, dtype=np.bool_)
        return np.asarray(
            least_bytes(problem, *grids, width, buffers) <= problem.memory, dtype=np.bool_
        )

    return fits


def _ends(problem: Problem, max_idle: float) -> Grids:
    """Every (pm, pn), with the fewest and with the most ranks along K that leave at most `max_idle`
    of the ranks idle.
    """
    m, n, k = problem.sides
    counts = np.array(
        [min(problem.ranks // pm, n) for pm in range(1, min(problem.ranks, m) + 1)], dtype=np.int64
    )
    pm = np.repeat(np.arange(1, counts.size + 1), counts)
    pn = np.arange(pm.size) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    most = np.minimum(problem.ranks // (pm * pn), k)
    fewest = -(-min(_at_work(problem, max_idle), int((pm * pn * most).max())) // (pm * pn))
    low, high = (
        Grids(pm, pn, fewest).where(fewest <= most),
        Grids(pm, pn, most).where(fewest <= most),
    )
    return low.with_more(high)


def _between(problem: Problem, ends: Grids, max_idle: float) -> Grids:
    """The grids of the given pairs (pm, pn) with any pk that leaves at most `max_idle` of the ranks
    idle.
    """
    pairs = np.unique(np.stack([ends.pm, ends.pn]), axis=1)
    pm, pn = pairs[0], pairs[1]
    most = np.minimum(problem.ranks // (pm * pn), problem.sides[2])
    fewest = np.minimum(-(-_at_work(problem, max_idle) // (pm * pn)), most)
    counts = most - fewest + 1
    above = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return Grids(np.repeat(pm, counts), np.repeat(pn, counts), np.repeat(fewest, counts) + above)


def _at_work(problem: Problem, max_idle: float) -> int:
    return max(1, int(np.ceil(problem.ranks * (1 - max_idle))))
