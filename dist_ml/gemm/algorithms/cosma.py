"""The grid by the bound, in as few sequential steps along K, M and N as memory allows.

Source: Kwasniewski et al., "Red-Blue Pebbling Revisited" (SC 2019), whose ideal grid `search` looks
for among all integer grids.
"""

from dist_ml.gemm import search, tile_search
from dist_ml.gemm.algorithms.gathering_plan import gathering_plan
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> Plan:
    """The fewest words of all integer grids, and in tiles where they save enough; `choice.grid`
    where that is given.
    """
    if choice.grid is not None:
        return gathering_plan("cosma", shape, choice.grid, choice, orders)
    grid = search.best_grid(shape)
    if choice.tiles is None:
        grid, tiles = tile_search.best_tiles(shape, grid)
        choice = choice._replace(tiles=tiles)
    return gathering_plan("cosma", shape, grid, choice, orders)
