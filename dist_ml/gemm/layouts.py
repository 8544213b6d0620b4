"""The usual layouts: by rows, by columns, 2-D, block-cyclic, 2.5-D and 3-D, and all on one rank."""

from dist_ml.errors import ConfigError
from dist_ml.gemm.dim_split import DimSplit
from dist_ml.gemm.layout import Layout


def block_rows(rows: int, cols: int, ranks: int) -> Layout:
    """1-D: a balanced block of rows a rank."""
    return Layout(rows, cols, (ranks,), row_splits=(DimSplit(0),))


def block_cols(rows: int, cols: int, ranks: int) -> Layout:
    """1-D: a balanced block of columns a rank."""
    return Layout(rows, cols, (ranks,), col_splits=(DimSplit(0),))


def block_2d(rows: int, cols: int, grid: tuple[int, int]) -> Layout:
    """2-D: rank (i, j) of the grid owns block (i, j)."""
    return Layout(rows, cols, grid, (DimSplit(0),), (DimSplit(1),))


def block_cyclic(rows: int, cols: int, grid: tuple[int, int], block: tuple[int, int]) -> Layout:
    """ScaLAPACK's: blocks of `block` elements are dealt in turn over both sides of the grid."""
    if min(block) < 1:
        raise ConfigError(f"block {block} must be at least 1 x 1")
    return Layout(rows, cols, grid, (DimSplit(0, block[0]),), (DimSplit(1, block[1]),))


def block_25d(rows: int, cols: int, grid: tuple[int, int, int], replicated: bool = False) -> Layout:
    """2.5-D: blocks over the first two sides; the layers (third side) share each block evenly, or
    each hold a replica of it.
    """
    return Layout(
        rows, cols, grid, (DimSplit(0),), (DimSplit(1),), flat_axis=None if replicated else 2
    )


def block_3d(
    rows: int, cols: int, grid: tuple[int, int, int], axes: tuple[int, int, int] = (0, 1, 2)
) -> Layout:
    """3-D: rows over grid side axes[0], columns over axes[1], and each block dealt evenly over
    axes[2].
    """
    return Layout(rows, cols, grid, (DimSplit(axes[0]),), (DimSplit(axes[1]),), flat_axis=axes[2])


def on_one_rank(rows: int, cols: int) -> Layout:
    """All of it on rank 0."""
    return Layout(rows, cols, (1,))
