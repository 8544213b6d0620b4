"""Torch's reductions: those that MPI makes, averages, scaled sums, and those of gathered values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.distributed import ReduceOp

from dist_ml.comm.accounting import Op
from dist_ml.errors import CommunicationError


class Reduction(NamedTuple):
    """How values are reduced: by the communicator's `op`, what goes in multiplied by `factor`
    first; or `fold`, of all ranks' values [ranks, n], where there is no such op.
    """

    op: Op = "sum"
    factor: float | torch.Tensor | None = None
    fold: Callable[[torch.Tensor], torch.Tensor] | None = None


def _folded(combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Reduction:
    def fold(rows: torch.Tensor) -> torch.Tensor:
        total = rows[0].clone()
        for row in rows[1:]:
            total = combine(total, row)
        return total

    return Reduction(fold=fold)


_REDUCTIONS = (
    (ReduceOp.SUM, Reduction("sum")),
    (ReduceOp.AVG, Reduction("mean")),
    (ReduceOp.MIN, Reduction("min")),
    (ReduceOp.MAX, Reduction("max")),
    (ReduceOp.PRODUCT, _folded(torch.mul)),
    (ReduceOp.BAND, _folded(torch.bitwise_and)),
    (ReduceOp.BOR, _folded(torch.bitwise_or)),
    (ReduceOp.BXOR, _folded(torch.bitwise_xor)),
)


def reduction(op: Any, dtype: torch.dtype) -> Reduction:
    """What torch's `op` does to values of `dtype`. `CommunicationError` for what is undefined."""
    if op == ReduceOp.PREMUL_SUM:
        return Reduction("sum", factor=op.__getstate__()[1])
    found = next((reduction for known, reduction in _REDUCTIONS if op == known), None)
    if found is None:
        raise CommunicationError(f"reduction {op} is unknown to this backend; use SUM, AVG, MIN, …")
    if dtype == torch.bool and found.op in ("sum", "mean") and found.fold is None:
        if found.op == "mean":
            raise CommunicationError("an average of bool is undefined; pass .float()")
        return Reduction("max")  # any, as torch's own backends have it
    if dtype.is_complex:  # moved as pairs of real numbers
        if found.fold is None and found.op in ("sum", "mean"):
            return found
        raise CommunicationError(f"reduction {op} of {dtype} isn't built; use SUM or AVG")
    if not dtype.is_floating_point and found.op == "mean":
        raise CommunicationError(f"an average of {dtype} would be rounded; pass a floating dtype")
    return found
