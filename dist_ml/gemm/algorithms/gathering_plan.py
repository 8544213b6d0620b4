"""The plan of every algorithm that multiplies by gathering: they differ by their grid."""

from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.dim_split import DimSplit
from dist_ml.gemm.grid import ONE_TILE, Grid
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.steps import check_grid, reduce_parts, steps_and_buffers


def gathering_plan(
    name: str, shape: ProductShape, grid: Grid, choice: Choice, orders: Orders
) -> Plan:
    check_grid(shape, grid)
    tiles = choice.tiles or ONE_TILE
    steps, buffers = steps_and_buffers(shape, grid, choice)
    parts = reduce_parts(shape, grid, tiles)
    m, n, k = shape.m, shape.n, shape.k
    tm, tn = ((count,) for count in tiles)
    a = Layout(
        m,
        k,
        grid,
        (DimSplit(0),),
        (DimSplit(2),),
        1,
        row_segments=tm,
        col_segments=(steps,),
        column_major=orders.a,
    )
    b = Layout(
        k,
        n,
        grid,
        (DimSplit(2),),
        (DimSplit(1),),
        0,
        row_segments=(steps,),
        col_segments=tn,
        column_major=orders.b,
    )
    c = Layout(
        m, n, grid, (DimSplit(0),), (DimSplit(1),), 2, row_segments=(*tm, parts), col_segments=tn
    )
    return Plan(name, shape, grid, a, b, c, steps, parts, buffers, tiles)
