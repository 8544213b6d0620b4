"""The check that a product is right: against float64, within the rounding errors that the algorithm
may make and no more.
"""

import torch

# Relative rounding of one operation in the dtype that products are summed in, and of storing the
# result.
_UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-24}
_STORED = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8}


def error_over_bound(
    result: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> float:
    """The largest ratio, over all elements, of |result - exact| to what rounding can make of it; at
    most 1 where it is right.

    The bound holds for any order of summation: (k + 3) u (|alpha| |A| |B| + |beta| |C|) + stored
    |exact|, from Higham, "Accuracy and Stability of Numerical Algorithms" (2nd ed.), section 3.5;
    to which each operation adds the smallest normal number, for results that underflow (section
    2.1).
    Whole matrices on one rank; float64 inputs are checked against the sum that float64 itself
    gives, with twice the bound.
    """
    unit, stored = _UNIT[result.dtype], _STORED[result.dtype]
    wide_a, wide_b = a.double(), b.double()
    exact, scale = alpha * (wide_a @ wide_b), abs(alpha) * (wide_a.abs() @ wide_b.abs())
    if beta != 0.0:
        assert c is not None
        exact, scale = exact + beta * c.double(), scale + abs(beta) * c.double().abs()
    slack = 2 if result.dtype == torch.float64 else 1
    underflow = max(1.0, abs(alpha), abs(beta)) * torch.finfo(result.dtype).tiny
    bound = slack * ((a.shape[1] + 3) * (unit * scale + underflow) + stored * exact.abs())
    error = (result.double() - exact).abs()
    if not error.numel():
        return 0.0
    if not torch.isfinite(error).all():
        return float("inf")
    return float((error / bound.clamp_min(torch.finfo(torch.float64).tiny)).max())
