"""The naive reference: every rank keeps its rows of A, gathers all of B, and multiplies once."""

from dist_ml.errors import ConfigError
from dist_ml.gemm.algorithms.gathering_plan import gathering_plan
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> Plan:
    """A grid along M only, K in one panel. Words received: kn (1 - 1/p)."""
    grid = choice.grid or Grid(min(shape.ranks, shape.sides[0]), 1, 1)
    if grid.pn * grid.pk != 1:
        raise ConfigError(f"grid={list(grid)}: gather splits rows only; use [{shape.ranks}, 1, 1]")
    return gathering_plan("gather", shape, grid, choice._replace(panel=shape.sides[2]), orders)
