"""The product of a layer whose weights are cut along the rows' side, too: gathered when they are
used, so that a rank keeps no more than its part of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dist_ml.nn import backward_part
from dist_ml.operator_parallel.boundary import Boundary
from dist_ml.operator_parallel.collectives import gathered, kept
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import LayerCut


class Gathering(Boundary):
    """Who gathers what in one layer. `output_counts`: rows of the weight on each rank of the rows'
    side.
    """

    def __init__(self, grid: OperatorGrid, cut: LayerCut, output_counts: Sequence[int]) -> None:
        super().__init__(cut, grid)
        self.keeps = cut.layout.keeps
        self.rows, self.copies = grid.along("rows"), grid.along("copies")
        self.output_counts = list(output_counts)


def gathered_product(x: torch.Tensor, weight: torch.Tensor, gathering: Gathering) -> torch.Tensor:
    """This rank's part of X W^T; x [rows, …, inputs] and weight [outputs, inputs] its parts.

    Words of a rank, with b' of its block's rows: forward the other ranks' parts of X [b', inputs]
    and W, and (1 - 1/P) b' outputs; backward the same for dX and dW, dY in the place of Y, and,
    unless they were kept, those of X and W again. Under autocast what moves is of its dtype, but
    for dW, which is summed in the weight's.
    """
    flat = x.flatten(1, -2) if x.ndim > 3 else x
    product: torch.Tensor = _GatheredProduct.apply(flat, weight, gathering)  # type: ignore[no-untyped-call]
    return product.view(-1, *x.shape[1:-1], product.shape[-1]) if x.ndim > 3 else product


class _GatheredProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, gathering: Gathering
    ) -> torch.Tensor:
        ctx.gathering = gathering
        ctx.x_counts = gathering.row_counts(gathering.outputs.size)
        ctx.y_counts = gathering.row_counts(gathering.inputs.size)
        ctx.dtypes, ctx.dtype = (x.dtype, weight.dtype), x.dtype
        if torch.is_autocast_enabled("cpu"):  # which backward passes run without
            ctx.dtype = torch.get_autocast_dtype("cpu")
        x = x.to(ctx.dtype)
        all_x = gathered(x, gathering.outputs, ctx.x_counts)
        all_weight = gathered(weight.to(ctx.dtype), gathering.rows, gathering.output_counts)
        y = torch.matmul(all_x, all_weight.T)
        ctx.save_for_backward(*((all_x, all_weight) if gathering.keeps else (x, weight)))
        return kept(y, gathering.inputs, ctx.y_counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g: Gathering = ctx.gathering
        x, weight = ctx.saved_tensors
        part = backward_part.current()
        dx = dw = None
        dy = gathered(dy, g.inputs, ctx.y_counts)
        if ctx.needs_input_grad[0] and part != "weight":
            if not g.keeps:
                weight = gathered(weight.to(ctx.dtype), g.rows, g.output_counts)
            dx = kept(torch.matmul(dy, weight), g.outputs, ctx.x_counts).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1] and part != "input":
            if not g.keeps:
                x = gathered(x, g.outputs, ctx.x_counts)
            dw = (dy.flatten(0, -2).T @ x.flatten(0, -2)).to(ctx.dtypes[1])
            dw = kept(dw, g.rows, g.output_counts)
            if g.copies.size > 1:
                g.copies.allreduce(dw)
        return dx, dw, None
