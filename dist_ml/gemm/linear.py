"""`Linear`: torch's linear layer with its three products on the tuned kernels. State, initial weights and results stay torch's.

    forward    Y  = X W^T + bias        (batch x out)
    backward   dX = dY W                (batch x in)
               dW = dY^T X              (out x in)

Each product runs on the kernel that was fastest for its shape; where that is torch's own for all three, or the input is not a
float32 or float64 tensor in host memory, or autocast is on, the layer is exactly `torch.nn.functional.linear`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm.kernel import kernels
from dist_ml.gemm.kernel.tuner import FALLBACK, Shape, Tuner

# What a layer of our own costs over torch's in Python, forward and backward: where the kernels save less, the layer stays
# torch's.
_OVERHEAD_SECONDS = 60e-6


class Products(NamedTuple):
    """Names of the kernels for the three products of a layer at one batch size."""

    forward: str
    backward_input: str
    backward_weight: str


class Linear(nn.Linear):
    """A drop-in for `nn.Linear`; make it with `use_kernel`. `kernel` is one of `KERNELS` or auto."""

    def __init__(self, twin: nn.Linear, kernel: str, tuner: Tuner) -> None:
        """Takes over the twin's parameters themselves, so that optimizers and flat buffers that hold them stay right."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = twin.in_features, twin.out_features
        self.weight, self.bias = twin.weight, twin.bias
        self.training = twin.training
        self.kernel = kernel
        self._tuner = tuner
        self._products: dict[int, Products] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype not in (torch.float32, torch.float64) or x.dtype != self.weight.dtype or x.device.type != "cpu":
            return functional.linear(x, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu") or x.numel() == 0:
            return functional.linear(x, self.weight, self.bias)
        rows = x.numel() // self.in_features
        products = self._products.get(rows)
        if products is None:
            products = self._products[rows] = self._choose(rows)
        if products == Products(FALLBACK, FALLBACK, FALLBACK):
            return functional.linear(x, self.weight, self.bias)
        result: torch.Tensor = _Affine.apply(x, self.weight, self.bias, products)  # type: ignore[no-untyped-call]
        return result

    def _choose(self, rows: int) -> Products:
        if self.kernel != kernels.AUTO:
            return Products(self.kernel, self.kernel, self.kernel)
        shapes = self.shapes(rows)
        choices = [self._tuner.choose(shape) for shape in shapes]
        saved = sum(self._tuner.saved_seconds(shape, name) for shape, name in zip(shapes, choices, strict=True))
        return Products(*choices) if saved > _OVERHEAD_SECONDS else Products(FALLBACK, FALLBACK, FALLBACK)

    def take_up(self) -> None:
        """Choose anew, from what has been measured since."""
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
    """Y = X W^T + bias and its gradient; X has any number of leading dims."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, products: Products) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty(rows.shape[0], weight.shape[0], dtype=x.dtype)
        kernels.KERNELS[products.forward](y, rows, weight.detach().T, 1.0, 0.0)
        if bias is not None:
            y += bias
        ctx.save_for_backward(rows, weight)
        ctx.products, ctx.shape, ctx.has_bias = products, x.shape, bias is not None
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        dy = gradient.reshape(rows.shape[0], -1)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(rows)
            kernels.KERNELS[ctx.products.backward_input](dx, dy, weight.detach(), 1.0, 0.0)
            dx = dx.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weight)
            kernels.KERNELS[ctx.products.backward_weight](dw, dy.T, rows, 1.0, 0.0)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None


def use_kernel(model: nn.Module, kernel: str) -> None:
    """Put the plain `nn.Linear` layers inside `model` on `kernel`; the same parameters, and the same keys in its state.

    `auto` uses what this machine's cache knows and torch for all else; `tune` fills it. `torch` changes nothing. No
    communication.
    """
    if kernel == FALLBACK:
        return
    if kernel != kernels.AUTO:
        kernels.named(kernel)
    tuner = Tuner()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Linear(child, kernel, tuner))


def tune(model: nn.Module, batch_sizes: Iterable[int], comm: Communicator) -> None:
    """Measure the `auto` layers' shapes at `batch_sizes` rows of input, where this machine's cache lacks them. Collective.

    One rank of each node measures, in a child process, while the others wait.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and layer.kernel == kernels.AUTO]
    if not layers:
        return
    node = comm.split_by_node()
    if node.rank == 0:
        Tuner().tune(shape for layer in layers for rows in batch_sizes for shape in layer.shapes(rows))
    node.barrier()
    node.free()
    for layer in layers:
        layer.take_up()
