"""Every way to compute C = alpha A B + beta C on one rank, behind one signature. `KERNELS` names
them.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from dist_ml.errors import ConfigError
from dist_ml.kernels import loops, openblas

# (c, a, b, alpha, beta): c (m x n) in place, a (m x k), b (k x n); any strides, one dtype (float32
# or float64).
Kernel: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, float], None]


def torch_kernel(
    c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float, beta: float
) -> None:
    """PyTorch's (MKL, or oneDNN for bfloat16)."""
    c.addmm_(a, b, alpha=alpha, beta=beta)


def numpy_kernel(
    c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float, beta: float
) -> None:
    """numpy's, with the kernel set that its OpenBLAS chose for itself."""
    if alpha == 1.0 and beta == 0.0:
        np.matmul(a.numpy(), b.numpy(), out=c.numpy())
        return
    product = torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    c.mul_(beta) if beta != 0.0 else c.zero_()
    c.add_(product, alpha=alpha)


def openblas_kernel(kernel_set: str) -> Kernel:
    """OpenBLAS with one of its kernel sets; transposed and sliced operands go in as they are."""

    def kernel(
        c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float, beta: float
    ) -> None:
        blas = openblas.load(kernel_set)
        blas.use_threads(torch.get_num_threads())
        if not _dense_rows(c) and _dense_rows(c.T):
            c, a, b = c.T, b.T, a.T
        if not _dense_rows(c):  # no BLAS writes to a matrix with gaps in its rows
            dense = c.clone(memory_format=torch.contiguous_format)
            kernel(dense, a, b, alpha, beta)
            c.copy_(dense)
            return
        (a, a_flag, a_step), (b, b_flag, b_step) = _operand(a), _operand(b)
        blas.gemm(
            "s" if c.dtype == torch.float32 else "d",
            (a_flag, b_flag),
            (c.shape[0], c.shape[1], a.shape[1]),
            alpha,
            beta,
            (a.data_ptr(), a_step),
            (b.data_ptr(), b_step),
            (c.data_ptr(), max(c.stride(0), c.shape[1])),
        )

    return kernel


def _operand(x: torch.Tensor) -> tuple[torch.Tensor, bool, int]:
    """(matrix, is it transposed in memory, elements from one stored row to the next); copied only
    where neither dim is dense.
    """
    if _dense_rows(x):
        return x, False, max(x.stride(0), x.shape[1], 1)
    if _dense_rows(x.T):
        return x, True, max(x.stride(1), x.shape[0], 1)
    return x.clone(memory_format=torch.contiguous_format), False, max(x.shape[1], 1)


def _dense_rows(x: torch.Tensor) -> bool:
    """Can BLAS take it as row-major? Strides of dims of size 1 mean nothing."""
    rows, cols = x.shape
    return (x.stride(1) == 1 or cols == 1) and (x.stride(0) >= cols or rows == 1)


def loop_kernel(function: loops.Loop) -> Kernel:
    def kernel(
        c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float, beta: float
    ) -> None:
        out = c.numpy()
        loops.fastest(function)(
            out, a.numpy(), b.numpy(), out.dtype.type(alpha), out.dtype.type(beta)
        )

    return kernel


KERNELS: dict[str, Kernel] = {
    "naive": loop_kernel(loops.naive),
    "reordered": loop_kernel(loops.reordered),
    "blocked": loop_kernel(loops.blocked),
    "torch": torch_kernel,
    "numpy": numpy_kernel,
    **{f"openblas-{name}": openblas_kernel(name) for name in openblas.KERNEL_SETS},
}

AUTO = "auto"


def usable() -> list[str]:
    """The libraries' kernels that run on this processor: what `auto` chooses from."""
    return ["torch", "numpy", *(f"openblas-{name}" for name in openblas.available())]


def named(name: str) -> Kernel:
    """The kernel called `name`; `ConfigError` where there is none, or none that this processor can
    run.
    """
    if name not in KERNELS:
        raise ConfigError(f"kernel={name} is not one of {AUTO}, {', '.join(KERNELS)}")
    if name.startswith("openblas-") and name not in usable():
        raise ConfigError(
            f"kernel={name} can't run on this processor; usable are {AUTO}, {', '.join(usable())}"
        )
    return KERNELS[name]
