"""`TunedLinear`: torch's linear layer with its three products on the tuned kernels. State, initial
weights and results stay torch's.

    forward    Y  = X W^T + bias        (batch x out)
    backward   dX = dY W                (batch x in)
               dW = dY^T X              (out x in)

Each product runs on the kernel that was fastest for its shape. dW goes straight into the gradient
buffer where there is one (`gradient_sink`), which a large layer gains from on torch's kernel too.
Where neither saves anything, or the input is not a float32 or float64 tensor in host memory, or
autocast is on, the layer is exactly `torch.nn.functional.linear`.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import FALLBACK, Shape, Tuner
from dist_ml.nn import backward_part
from dist_ml.nn.gradient_sink import GradientSink

# What a layer of our own costs over torch's in Python, forward and backward: where the kernels save
# less, the layer stays torch's.
_OVERHEAD_SECONDS = 60e-6
# From about so many weights on, the passes over the gradient that a sink saves take longer than
# that.
SINK_WORDS = 1 << 17


class Products(NamedTuple):
    """Names of the kernels for the three products of a layer at one batch size."""

    forward: str
    backward_input: str
    backward_weight: str


class TunedLinear(nn.Linear):
    """A drop-in for `nn.Linear`; `tuning.linear_factory` makes it. `kernel` is one of `KERNELS` or
    auto.
    """

    def __init__(self, reference: nn.Linear, kernel: str, tuner: Tuner) -> None:
        """Takes over the reference's parameters themselves, so that optimizers and flat buffers
        that hold them stay right.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = reference.in_features, reference.out_features
        self.weight, self.bias = reference.weight, reference.bias
        self.training = reference.training
        self.kernel = kernel
        self._tuner = tuner
        self._products: dict[int, Products] = {}
        self._sink: GradientSink | None = None
        if self.weight.numel() >= SINK_WORDS:
            self._sink = self.weight.gradient_sink = GradientSink()  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.affine(x, self.bias)

    def affine(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x W^T + bias, with this `bias` instead of the layer's own."""
        if (
            self.weight.dtype not in (torch.float32, torch.float64)
            or x.dtype != self.weight.dtype
            or x.device.type != "cpu"
        ):
            return self._as_torch(x, bias)
        if torch.is_autocast_enabled("cpu") or x.numel() == 0:
            return self._as_torch(x, bias)
        rows = x.numel() // self.in_features
        products = self.products(rows)
        sink = (
            self._sink
            if self._sink is not None and self._sink.attached and torch.is_grad_enabled()
            else None
        )
        if sink is None and products == Products(FALLBACK, FALLBACK, FALLBACK):
            return functional.linear(x, self.weight, bias)
        batch: torch.Tensor = x.reshape(rows, self.in_features)
        result: torch.Tensor = _Affine.apply(batch, self.weight, bias, products, sink)  # type: ignore[no-untyped-call]
        return result if x.ndim == 2 else result.view(*x.shape[:-1], self.out_features)

    def _as_torch(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self.leave_gradient_to_autograd()
        return functional.linear(x, self.weight, bias)

    def leave_gradient_to_autograd(self) -> None:
        """The weight's, in this pass: autograd will add to it, so it must be there."""
        if self._sink is not None and self._sink.attached:
            self._sink.leave_to_autograd()

    def products(self, rows: int) -> Products:
        """The kernels in use at `rows` rows of input."""
        products = self._products.get(rows)
        if products is None:
            products = self._products[rows] = self._choose(rows)
        return products

    def _choose(self, rows: int) -> Products:
        if self.kernel != kernels.AUTO:
            return Products(self.kernel, self.kernel, self.kernel)
        shapes = self.shapes(rows)
        choices = [self._tuner.choose(shape) for shape in shapes]
        saved = sum(
            self._tuner.saved_seconds(shape, name)
            for shape, name in zip(shapes, choices, strict=True)
        )
        return (
            Products(*choices)
            if saved > _OVERHEAD_SECONDS
            else Products(FALLBACK, FALLBACK, FALLBACK)
        )

    def choose_again(self) -> None:
        """Choose kernels from what has been measured by now."""
        self._tuner.reload()
        self._products.clear()

    def shapes(self, rows: int) -> tuple[Shape, Shape, Shape]:
        """The three products at `rows` rows of input, in the order of `Products`."""
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return (
            Shape(rows, self.out_features, self.in_features, "NT", dtype),
            Shape(rows, self.in_features, self.out_features, "NN", dtype),
            Shape(self.out_features, self.in_features, rows, "TN", dtype),
        )


class _Affine(torch.autograd.Function):
    """Y = X W^T + bias and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        products: Products,
        sink: GradientSink | None,
    ) -> torch.Tensor:
        if products.forward == FALLBACK:
            y = functional.linear(x, weight, bias)
        else:
            y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
            kernels.KERNELS[products.forward](y, x, weight.detach().T, 1.0, 0.0)
            if bias is not None:
                y += bias
        ctx.save_for_backward(x, weight)
        ctx.products, ctx.has_bias, ctx.sink = products, bias is not None, sink
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        part = backward_part.current()
        if ctx.needs_input_grad[0] and part != "weight":
            dx = torch.empty_like(x)
            kernels.KERNELS[ctx.products.backward_input](dx, dy, weight.detach(), 1.0, 0.0)
        if part == "input":
            return dx, None, None, None, None
        if ctx.needs_input_grad[1]:
            kernel = kernels.KERNELS[ctx.products.backward_weight]
            if ctx.sink is not None:
                ctx.sink.write(lambda view, beta: kernel(view, dy.T, x, 1.0, beta))
            else:
                dw = torch.empty_like(weight)
                kernel(dw, dy.T, x, 1.0, 0.0)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None, None
