"""How many panels K is gathered in, in how many parts C is reduced, and whether that fits."""

from dist_ml.errors import ConfigError
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.grid import (
    ONE_TILE,
    REDUCE_PARTS,
    Grid,
    Tiles,
    least_bytes,
    panel_bytes,
    partial_bytes,
    reduce_bytes,
    tile_sizes,
)
from dist_ml.gemm.product_shape import ProductShape

# Without a memory limit, K is gathered in this many panels at most, none narrower than PANEL: wide
# enough for the local product to run at full speed, and enough of them that gathering hides behind
# multiplying.
MOST_PANELS = 8
PANEL = 512

# A plan lists its panels, and each costs a message: more of them than this is a mistake.
MAX_PANELS = 1 << 16

# Without a memory limit, C is reduced in parts of about this many bytes.
REDUCE_BYTES = 1 << 19


def steps_and_buffers(shape: ProductShape, grid: Grid, choice: Choice) -> tuple[int, int]:
    """(panels, panels held at a time): as wide as memory lets them be, but enough of them to
    overlap.
    """
    depth = -(-shape.k // grid.pk)
    gathers = grid.pm > 1 or grid.pn > 1
    wanted = max(1, min(MOST_PANELS, depth // PANEL)) if gathers or shape.half else 1
    if choice.panel is not None:
        wanted = max(1, -(-depth // choice.panel))
    if shape.memory is None:
        _check_panels(shape, wanted)
        return wanted, 2 if wanted > 1 and gathers else 1
    tiles = choice.tiles or ONE_TILE
    fixed = int(
        partial_bytes(shape, *grid, *tiles) + reduce_bytes(shape, *grid, REDUCE_PARTS, *tiles)
    )
    check_memory(shape, int(least_bytes(shape, *grid, 1, 1, *tiles)))
    for buffers in (2, 1):
        one = int(panel_bytes(shape, grid.pm, grid.pn, 1, buffers, *tiles))
        width = depth if one == 0 else min(depth, (shape.memory - fixed) // one)
        steps = max(wanted, -(-depth // width)) if width else 0
        if width >= min(depth, 8) or (buffers == 1 and width):
            _check_panels(shape, steps)
            return max(1, steps), buffers if steps > 1 and gathers else 1
    raise AssertionError("least_bytes fits, so one panel of width 1 does")


def reduce_parts(shape: ProductShape, grid: Grid, tiles: Tiles = ONE_TILE) -> int:
    """MPI's reduce-scatter needs buffers of its own, of the size of what it is given: a large C
    goes to it in parts.
    """
    if grid.pk == 1:
        return 1
    rows, _ = tile_sizes(shape, grid.pm, grid.pn, *tiles)
    wanted = (
        REDUCE_PARTS
        if shape.memory is not None
        else int(partial_bytes(shape, *grid, *tiles)) // REDUCE_BYTES
    )
    return max(1, min(REDUCE_PARTS, int(rows), wanted))


def check_grid(shape: ProductShape, grid: Grid) -> None:
    """Every rank of the grid needs work, and the grid can't have more ranks than there are."""
    if min(grid) < 1 or grid.size > shape.ranks:
        raise ConfigError(
            f"grid={list(grid)} = {grid.size} ranks, but there are {shape.ranks}; choose sides "
            "of at least 1 that multiply to "
            f"at most {shape.ranks}, or leave grid=null to the planner"
        )
    for side, size, name in zip(grid, shape.sides, ("m", "n", "k"), strict=True):
        if side > size:
            raise ConfigError(
                f"grid={list(grid)} splits {name}={size} over {side} ranks; a side can be at most "
                "the size it splits"
            )


def check_memory(shape: ProductShape, least: int) -> None:
    if shape.memory is not None and least > shape.memory:
        raise too_little_memory(shape, least)


def too_little_memory(shape: ProductShape, least: int) -> ConfigError:
    return ConfigError(
        f"memory={shape.memory} bytes a rank is too little for {shape.m} x {shape.n} x "
        f"{shape.k} on {shape.ranks} "
        f"ranks: the least is {least} bytes besides the shards; give that much, or more ranks"
    )


def _check_panels(shape: ProductShape, panels: int) -> None:
    if panels > MAX_PANELS:
        raise ConfigError(
            f"k={shape.k} would be gathered in {panels} panels, more than {MAX_PANELS}; give wider "
            "panels (panel=), or more memory"
        )
