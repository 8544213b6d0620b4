"""The layouts of algorithms whose ranks own whole blocks of A and B."""

from dist_ml.gemm.choice import Orders
from dist_ml.gemm.dim_split import DimSplit
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.product_shape import ProductShape


def block_layouts(
    shape: ProductShape, grid: Grid, orders: Orders, parts: int
) -> tuple[Layout, Layout, Layout]:
    """One block a rank: K is cut over the layers first, then over the rows of the grid (B) or its
    columns (A).
    """
    a = Layout(
        shape.m, shape.k, grid, (DimSplit(0),), (DimSplit(2), DimSplit(1)), column_major=orders.a
    )
    b = Layout(
        shape.k, shape.n, grid, (DimSplit(2), DimSplit(0)), (DimSplit(1),), column_major=orders.b
    )
    c = Layout(
        shape.m, shape.n, grid, (DimSplit(0),), (DimSplit(1),), flat_axis=2, row_segments=(1, parts)
    )
    return a, b, c
