"""The local product that the distributed algorithms call: tuned, in any of the dtypes, with float32
sums for bfloat16.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch

from dist_ml.errors import ConfigError
from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import Shape, Tuner

# (c, a, b, alpha, beta): c = alpha a b + beta c. For bfloat16 operands c is float32.
Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, float], None]

SUM_DTYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of `dtype` are summed in; `ConfigError` for dtypes that can't be multiplied."""
    if dtype not in SUM_DTYPES:
        raise ConfigError(
            f"dtype={dtype} can't be multiplied here; use {', '.join(map(str, SUM_DTYPES))}"
        )
    return SUM_DTYPES[dtype]


def local_product(kernel: str = kernels.AUTO, tuner: Tuner | None = None) -> Product:
    """The product on the named kernel, or on the one that `tuner` (or what the user's cache holds)
    finds best for each shape.
    """
    if kernel != kernels.AUTO:
        fixed = kernels.named(kernel)
        return lambda c, a, b, alpha, beta: _multiply(c, a, b, alpha, beta, lambda *_: fixed)
    chosen = tuner or Tuner()
    return lambda c, a, b, alpha, beta: _multiply(
        c, a, b, alpha, beta, lambda *xs: kernels.KERNELS[chosen.choose(shape_of(*xs))]
    )


def shape_of(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Shape:
    """The product's sizes and storage, as the tuner knows them."""
    stored = "".join("N" if x.stride(1) == 1 or x.stride(0) != 1 else "T" for x in (a, b))
    return Shape(c.shape[0], c.shape[1], a.shape[1], stored, str(c.dtype).removeprefix("torch."))


def _multiply(
    c: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    alpha: float,
    beta: float,
    choose: Callable[..., kernels.Kernel],
) -> None:
    if c.numel() == 0:
        return
    if a.shape[1] == 0:
        c.mul_(beta) if beta != 0.0 else c.zero_()
        return
    if a.dtype == torch.bfloat16:
        a, b = a.float(), b.float()  # exact: what is summed are the products of the bfloat16 values
    choose(c, a, b)(c, a, b, alpha, beta)
