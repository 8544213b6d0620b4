"""Sharded products inside torch's autograd: gradients of A B flow to the storages of A and B, each
in its own layout.

    C = A B        dA = dC B^T  (in A's layout)        dB = A^T dC  (in B's layout)

Every rank calls forward and backward for the same products in the same order, as for any
collective. A redistribution is its own adjoint's inverse only where no element is replicated, so
replicated layouts are refused.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dist_ml.errors import ConfigError
from dist_ml.gemm import multiply
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.matrix import ShardedMatrix


def matmul(a: ShardedMatrix, b: ShardedMatrix, algorithm: str = "auto") -> ShardedMatrix:
    """A B in the layout of `algorithm`'s plan; differentiable by the storages of `a` and `b`.
    Collective, and so is its backward.

    Words: the plan's forward, and those of the two products of the same sizes backward, plus
    redistributions between layouts.
    """
    plan = multiply.plan_for(a, b, algorithm)
    _refuse_replicas(a, b)
    storage: torch.Tensor = _Matmul.apply(a.storage, b.storage, a, b, algorithm)  # type: ignore[no-untyped-call]
    return ShardedMatrix(plan.layout_c, a.comm, storage)


def relayout(x: ShardedMatrix, layout: Layout) -> ShardedMatrix:
    """`x.to(layout)`, differentiable. Collective, and so is its backward. Words: the elements whose
    owner changes, each way.
    """
    _refuse_replicas(x)
    storage: torch.Tensor = _Relayout.apply(x.storage, x, layout)  # type: ignore[no-untyped-call]
    return ShardedMatrix(layout, x.comm, storage)


def _refuse_replicas(*operands: ShardedMatrix) -> None:
    for operand in operands:
        if operand.layout.replicas > 1:
            raise ConfigError(
                f"{operand.layout.describe()} holds {operand.layout.replicas} replicas of each "
                "element, whose gradients "
                "would differ; use a layout without replicas"
            )


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a_storage: torch.Tensor,
        b_storage: torch.Tensor,
        a: ShardedMatrix,
        b: ShardedMatrix,
        algorithm: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(a_storage, b_storage)
        ctx.layouts, ctx.comm, ctx.algorithm = (a.layout, b.layout), a.comm, algorithm
        product = multiply.matmul(_detached(a, a_storage), _detached(b, b_storage), algorithm)
        ctx.product_layout = product.layout
        return product.storage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a_storage, b_storage = ctx.saved_tensors
        layout_a, layout_b = ctx.layouts
        a, b = (
            ShardedMatrix(layout_a, ctx.comm, a_storage),
            ShardedMatrix(layout_b, ctx.comm, b_storage),
        )
        dc = ShardedMatrix(ctx.product_layout, ctx.comm, gradient.contiguous())
        da = (
            multiply.matmul(dc, b.T, ctx.algorithm).to(layout_a).storage
            if ctx.needs_input_grad[0]
            else None
        )
        db = (
            multiply.matmul(a.T, dc, ctx.algorithm).to(layout_b).storage
            if ctx.needs_input_grad[1]
            else None
        )
        return da, db, None, None, None


class _Relayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, storage: torch.Tensor, x: ShardedMatrix, layout: Layout) -> torch.Tensor:
        ctx.source, ctx.target, ctx.comm = x.layout, layout, x.comm
        moved = _detached(x, storage).to(layout).storage
        return moved.clone() if layout == x.layout else moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        back = ShardedMatrix(ctx.target, ctx.comm, gradient.contiguous()).to(ctx.source)
        return back.storage, None, None


def _detached(x: ShardedMatrix, storage: torch.Tensor) -> ShardedMatrix:
    return ShardedMatrix(x.layout, x.comm, storage.detach())
