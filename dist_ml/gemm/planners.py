"""One planner an algorithm: from a problem to its plan. `PLANNERS` names them."""

from collections.abc import Callable
from math import isqrt
from typing import NamedTuple

from dist_ml.errors import ConfigError
from dist_ml.gemm import search
from dist_ml.gemm.grid import (
    ONE_TILE,
    REDUCE_PARTS,
    Grid,
    Problem,
    Tiles,
    least_bytes,
    mean_words,
    panel_bytes,
    partial_bytes,
    reduce_bytes,
    tile_sizes,
)
from dist_ml.gemm.layout import Layout, Split
from dist_ml.gemm.plan import BroadcastPlan, Plan, ShiftPlan

# Without a memory limit, K is gathered in this many panels at most, none narrower than PANEL: wide
# enough for the local product to run at full speed, and enough of them that gathering hides behind
# multiplying.
MOST_PANELS = 8
PANEL = 512

# Without a memory limit, SUMMA has two panels on their way while it multiplies a third: one that a
# rank sends, one that it receives.
BROADCASTS_HELD = 3

# Without a memory limit, C is reduced in parts of about this many bytes.
REDUCE_BYTES = 1 << 19


class Orders(NamedTuple):
    """Is each matrix stored column-major (it is a transpose view)? The plan's layouts then are,
    too, and nothing is copied.
    """

    a: bool = False
    b: bool = False


class Choice(NamedTuple):
    """What the user may fix instead of leaving it to the planner."""

    grid: Grid | None = None
    panel: int | None = None  # width along K
    replication: int | None = None  # layers of summa_25d
    tiles: Tiles | None = None  # of C, one after the other (algorithms that gather)


def auto(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """The best of all integer grids."""
    return _best("auto", problem, choice, orders)


def cosma(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """The grid by the bound, in as few sequential steps along K, M and N as memory allows. Source:
    COSMA (SC 2019).
    """
    return _best("cosma", problem, choice, orders)


def carma(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """Recursive splitting of the largest dimension by the prime factors of P.

    Source: Demmel, Eliahu, Fox, Kamil, Lipshitz, Schwartz, Spillinger, "Communication-Optimal
    Parallel Recursive Rectangular Matrix Multiplication" (IPDPS 2013), whose breadth-first steps
    these are, for any P.
    """
    return _gathering("carma", problem, choice.grid or _recursive_grid(problem), choice, orders)


def gather(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """The naive reference: every rank keeps its rows of A, gathers all of B, and multiplies
    once.
    """
    grid = choice.grid or Grid(min(problem.ranks, problem.sides[0]), 1, 1)
    if grid.pn * grid.pk != 1:
        raise ConfigError(
            f"grid={list(grid)}: gather splits rows only; use [{problem.ranks}, 1, 1]"
        )
    return _gathering("gather", problem, grid, choice._replace(panel=problem.sides[2]), orders)


def summa(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """Panels broadcast along rows and columns of a 2-D grid. Source: van de Geijn, Watts, "SUMMA"
    (Concurrency 1997).
    """
    if choice.grid is not None and choice.grid.pk != 1:
        raise ConfigError(
            f"grid={list(choice.grid)}: summa has no layers; use pk = 1, or summa_25d"
        )
    return _broadcasting(
        "summa", problem, choice.grid or _flat_grid(problem, problem.ranks, 1), choice, orders
    )


def summa_25d(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """SUMMA on each of c layers for a c-th of K, then a reduce-scatter over the layers.

    Source: Solomonik, Demmel, "Communication-optimal parallel 2.5D matrix multiplication" (Euro-Par
    2011); A and B start spread over the layers, so that none of them is broadcast first.
    """
    if choice.grid is not None:
        return _broadcasting("summa_25d", problem, choice.grid, choice, orders)
    layers = choice.replication or _best_layers(problem)
    if problem.ranks % layers or layers > problem.sides[2]:
        raise ConfigError(
            f"replication={layers} must divide the {problem.ranks} ranks and be at most "
            f"k={problem.k}; use a divisor such as 1"
        )
    return _broadcasting(
        "summa_25d", problem, _flat_grid(problem, problem.ranks // layers, layers), choice, orders
    )


def cannon(problem: Problem, choice: Choice, orders: Orders) -> Plan:
    """Blocks shifted around a square grid; ranks beyond the largest square stay idle. Source:
    Cannon's thesis (1969).
    """
    side = min(isqrt(problem.ranks), *problem.sides)
    grid = choice.grid or Grid(side, side, 1)
    if grid.pm != grid.pn or grid.pk != 1:
        raise ConfigError(f"grid={list(grid)}: cannon needs a square, such as [{side}, {side}, 1]")
    _check_grid(problem, grid)
    a, b, c = _block_layouts(problem, grid, orders, parts=1)
    plan = ShiftPlan("cannon", problem, grid, a, b, c, steps=grid.pm, buffers=2)
    _check_memory(problem, plan.working_bytes)
    return plan


PLANNERS: dict[str, Callable[[Problem, Choice, Orders], Plan]] = {
    "auto": auto,
    "cosma": cosma,
    "carma": carma,
    "summa": summa,
    "summa_25d": summa_25d,
    "cannon": cannon,
    "gather": gather,
}


def plan(
    algorithm: str, problem: Problem, choice: Choice | None = None, orders: Orders | None = None
) -> Plan:
    """The plan of `algorithm`; `ConfigError` for an unknown one, a grid that doesn't fit, or too
    little memory.
    """
    if algorithm not in PLANNERS:
        raise ConfigError(f"algorithm={algorithm} is not one of {', '.join(PLANNERS)}")
    return PLANNERS[algorithm](problem, choice or Choice(), orders or Orders())


def _best(name: str, problem: Problem, choice: Choice, orders: Orders) -> Plan:
    if choice.grid is not None:
        return _gathering(name, problem, choice.grid, choice, orders)
    grid = search.best_grid(problem)
    if choice.tiles is None:
        grid, tiles = search.best_tiles(problem, grid)
        choice = choice._replace(tiles=tiles)
    return _gathering(name, problem, grid, choice, orders)


def _gathering(name: str, problem: Problem, grid: Grid, choice: Choice, orders: Orders) -> Plan:
    _check_grid(problem, grid)
    tiles = choice.tiles or ONE_TILE
    steps, buffers = _steps(problem, grid, choice)
    parts = _reduce_parts(problem, grid, tiles)
    m, n, k = problem.m, problem.n, problem.k
    tm, tn = ((count,) for count in tiles)
    a = Layout(
        m,
        k,
        grid,
        (Split(0),),
        (Split(2),),
        1,
        row_segments=tm,
        col_segments=(steps,),
        column_major=orders.a,
    )
    b = Layout(
        k,
        n,
        grid,
        (Split(2),),
        (Split(1),),
        0,
        row_segments=(steps,),
        col_segments=tn,
        column_major=orders.b,
    )
    c = Layout(m, n, grid, (Split(0),), (Split(1),), 2, row_segments=(*tm, parts), col_segments=tn)
    return Plan(name, problem, grid, a, b, c, steps, parts, buffers, tiles)


def _broadcasting(name: str, problem: Problem, grid: Grid, choice: Choice, orders: Orders) -> Plan:
    _check_grid(problem, grid)
    steps, buffers = _steps(problem, grid, choice)
    if problem.memory is None and buffers > 1:
        buffers = BROADCASTS_HELD
    depth = -(-problem.sides[2] // grid.pk)
    parts = _reduce_parts(problem, grid)
    a, b, c = _block_layouts(problem, grid, orders, parts)
    return BroadcastPlan(
        name, problem, grid, a, b, c, steps, parts, buffers, width=-(-depth // steps)
    )


def _block_layouts(
    problem: Problem, grid: Grid, orders: Orders, parts: int
) -> tuple[Layout, Layout, Layout]:
    """One block a rank: K is cut over the layers first, then over the rows of the grid (B) or its
    columns (A).
    """
    a = Layout(problem.m, problem.k, grid, (Split(0),), (Split(2), Split(1)), column_major=orders.a)
    b = Layout(problem.k, problem.n, grid, (Split(2), Split(0)), (Split(1),), column_major=orders.b)
    c = Layout(
        problem.m, problem.n, grid, (Split(0),), (Split(1),), flat_axis=2, row_segments=(1, parts)
    )
    return a, b, c


def _steps(problem: Problem, grid: Grid, choice: Choice) -> tuple[int, int]:
    """(panels, panels held at a time): as wide as memory lets them be, but enough of them to
    overlap.
    """
    depth = -(-problem.k // grid.pk)
    gathers = grid.pm > 1 or grid.pn > 1
    wanted = max(1, min(MOST_PANELS, depth // PANEL)) if gathers or problem.half else 1
    if choice.panel is not None:
        if choice.panel < 1:
            raise ConfigError(f"panel={choice.panel} must be at least 1")
        wanted = max(1, -(-depth // choice.panel))
    if problem.memory is None:
        return wanted, 2 if wanted > 1 and gathers else 1
    tiles = choice.tiles or ONE_TILE
    fixed = int(
        partial_bytes(problem, *grid, *tiles) + reduce_bytes(problem, *grid, REDUCE_PARTS, *tiles)
    )
    _check_memory(problem, int(least_bytes(problem, *grid, 1, 1, *tiles)))
    for buffers in (2, 1):
        one = int(panel_bytes(problem, grid.pm, grid.pn, 1, buffers, *tiles))
        width = depth if one == 0 else min(depth, (problem.memory - fixed) // one)
        steps = max(wanted, -(-depth // width)) if width else 0
        if width >= min(depth, 8) or (buffers == 1 and width):
            return max(1, steps), buffers if steps > 1 and gathers else 1
    raise AssertionError("least_bytes fits, so one panel of width 1 does")


def _reduce_parts(problem: Problem, grid: Grid, tiles: Tiles = ONE_TILE) -> int:
    """MPI's reduce-scatter needs buffers of its own, of the size of what it is given: a large C
    goes to it in parts.
    """
    if grid.pk == 1:
        return 1
    rows, _ = tile_sizes(problem, grid.pm, grid.pn, *tiles)
    wanted = (
        REDUCE_PARTS
        if problem.memory is not None
        else int(partial_bytes(problem, *grid, *tiles)) // REDUCE_BYTES
    )
    return max(1, min(REDUCE_PARTS, int(rows), wanted))


def _check_grid(problem: Problem, grid: Grid) -> None:
    """Every rank of the grid needs work, and the grid can't have more ranks than there are."""
    if min(grid) < 1 or grid.size > problem.ranks:
        raise ConfigError(
            f"grid={list(grid)} = {grid.size} ranks, but there are {problem.ranks}; choose sides "
            "of at least 1 that multiply to "
            f"at most {problem.ranks}, or leave grid=null to the planner"
        )
    for side, size, name in zip(grid, problem.sides, ("m", "n", "k"), strict=True):
        if side > size:
            raise ConfigError(
                f"grid={list(grid)} splits {name}={size} over {side} ranks; a side can be at most "
                "the size it splits"
            )


def _check_memory(problem: Problem, least: int) -> None:
    if problem.memory is not None and least > problem.memory:
        raise search.too_little_memory(problem, least)


def _flat_grid(problem: Problem, ranks: int, layers: int) -> Grid:
    """The 2-D grid of `ranks` on each of `layers` with the fewest words; fewer ranks where the
    sizes are too small.
    """
    m, n, _ = problem.sides
    ranks = next(
        p
        for p in range(ranks, 0, -1)
        if any(p % pm == 0 and pm <= m and p // pm <= n for pm in _divisors(p))
    )
    grids = [
        Grid(pm, ranks // pm, layers) for pm in _divisors(ranks) if pm <= m and ranks // pm <= n
    ]
    return min(grids, key=lambda grid: (mean_words(problem, *grid), abs(grid.pm - grid.pn)))


def _best_layers(problem: Problem) -> int:
    """The number of layers with the fewest words, among those that divide the ranks."""
    usable = [layers for layers in _divisors(problem.ranks) if layers <= problem.sides[2]]
    return min(
        usable,
        key=lambda layers: (
            mean_words(problem, *_flat_grid(problem, problem.ranks // layers, layers)),
            layers,
        ),
    )


def _recursive_grid(problem: Problem) -> Grid:
    sides, counts = list(problem.sides), [1, 1, 1]
    for prime in _primes(problem.ranks):
        fitting = [dim for dim in range(3) if counts[dim] * prime <= problem.sides[dim]]
        if fitting:
            longest = max(fitting, key=lambda dim: sides[dim] / counts[dim])
            counts[longest] *= prime
    return Grid(*counts)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _primes(n: int) -> list[int]:
    """Prime factors, largest first."""
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1 if divisor * divisor <= n else max(1, n - divisor)
    return factors[::-1]
